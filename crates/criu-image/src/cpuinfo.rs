//! `cpuinfo.img`: the processor of a dump. CRIU writes it only if it is asked to.

use crate::msg::CpuinfoEntry;
use crate::{At, Error, Kind, View};

/// Words of feature bits that CRIU knows of; what is behind them is not looked at.
const MAX_WORDS: usize = 19;

/// Instructions that a program may choose when it starts: word and bit, by CRIU's count of words,
/// and the kernel's name in `/proc/cpuinfo`. What the kernel often hides although the processor
/// tells of it is left out.
const FEATURES: [(usize, u32, &str); 63] = [
    // CPUID 1, EDX.
    (0, 8, "cx8"),
    (0, 15, "cmov"),
    (0, 23, "mmx"),
    (0, 24, "fxsr"),
    (0, 25, "sse"),
    (0, 26, "sse2"),
    // CPUID 8000_0001, EDX.
    (1, 22, "mmxext"),
    (1, 27, "rdtscp"),
    // CPUID 1, ECX.
    (4, 0, "pni"),
    (4, 1, "pclmulqdq"),
    (4, 9, "ssse3"),
    (4, 12, "fma"),
    (4, 13, "cx16"),
    (4, 19, "sse4_1"),
    (4, 20, "sse4_2"),
    (4, 22, "movbe"),
    (4, 23, "popcnt"),
    (4, 25, "aes"),
    (4, 26, "xsave"),
    (4, 28, "avx"),
    (4, 29, "f16c"),
    (4, 30, "rdrand"),
    // CPUID 8000_0001, ECX.
    (6, 0, "lahf_lm"),
    (6, 5, "abm"),
    (6, 6, "sse4a"),
    (6, 8, "3dnowprefetch"),
    (6, 11, "xop"),
    (6, 16, "fma4"),
    (6, 21, "tbm"),
    // CPUID 7, EBX.
    (9, 3, "bmi1"),
    (9, 5, "avx2"),
    (9, 8, "bmi2"),
    (9, 16, "avx512f"),
    (9, 17, "avx512dq"),
    (9, 19, "adx"),
    (9, 21, "avx512ifma"),
    (9, 23, "clflushopt"),
    (9, 24, "clwb"),
    (9, 28, "avx512cd"),
    (9, 29, "sha_ni"),
    (9, 30, "avx512bw"),
    (9, 31, "avx512vl"),
    // CPUID D.1, EAX: the dynamic linker saves registers by them.
    (10, 0, "xsaveopt"),
    (10, 1, "xsavec"),
    (10, 2, "xgetbv1"),
    // CPUID 7, ECX.
    (11, 1, "avx512vbmi"),
    (11, 6, "avx512_vbmi2"),
    (11, 8, "gfni"),
    (11, 9, "vaes"),
    (11, 10, "vpclmulqdq"),
    (11, 11, "avx512_vnni"),
    (11, 12, "avx512_bitalg"),
    (11, 14, "avx512_vpopcntdq"),
    (11, 22, "rdpid"),
    (11, 27, "movdiri"),
    (11, 28, "movdir64b"),
    // CPUID 7, EDX.
    (18, 2, "avx512_4vnniw"),
    (18, 3, "avx512_4fmaps"),
    (18, 8, "avx512_vp2intersect"),
    (18, 22, "amx_bf16"),
    (18, 23, "avx512_fp16"),
    (18, 24, "amx_tile"),
    (18, 25, "amx_int8"),
];

/// The processor that a checkpoint was made on; of one that is no x86, nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpuinfo {
    /// What it is called, in the words of its maker.
    pub model: Vec<u8>,
    /// Words of feature bits, in CRIU's order; none if it is no x86.
    words: Vec<u32>,
}

impl View for Cpuinfo {
    type Wire = CpuinfoEntry;

    const KIND: Kind = Kind::Cpuinfo;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let Some(x86) = wire.x86_entry.into_iter().next() else {
            return Ok(Self::default());
        };
        at.need(x86.capability_ver, "capability_ver")?;
        let mut words = x86.capability;
        words.truncate(MAX_WORDS);
        Ok(Self {
            model: x86.model_id.unwrap_or_default(),
            words,
        })
    }
}

impl Cpuinfo {
    /// The instructions it had beyond those that all of its architecture have, by the names in
    /// `/proc/cpuinfo`. What CRIU did not ask the processor for is not among them.
    pub fn features(&self) -> impl Iterator<Item = &'static str> {
        let has = |word: usize, bit: u32| self.words.get(word).is_some_and(|w| w >> bit & 1 == 1);
        FEATURES
            .into_iter()
            .filter(move |(word, bit, _)| has(*word, *bit))
            .map(|(_, _, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msg::CpuinfoX86Entry;
    use crate::{Reader, Writer};

    fn read(entry: &CpuinfoEntry) -> Result<Cpuinfo, Error> {
        let mut writer = Writer::new(Kind::Cpuinfo, Vec::new())?;
        writer.message(entry)?;
        let bytes = writer.into_inner();
        Reader::<Cpuinfo, _>::new("cpuinfo.img", bytes.as_slice())?.single()
    }

    fn x86(capability: Vec<u32>) -> CpuinfoEntry {
        CpuinfoEntry {
            x86_entry: vec![CpuinfoX86Entry {
                capability_ver: Some(2),
                capability,
                model_id: Some(b"AMD EPYC".to_vec()),
            }],
        }
    }

    #[test]
    fn bits_have_names() {
        let mut words = vec![0; 19];
        words[0] = 1 << 26 | 1;
        words[9] = 1 << 5 | 1 << 16;
        words[18] = 1 << 24;
        let cpu = read(&x86(words)).unwrap();
        assert_eq!(cpu.model, b"AMD EPYC");
        let names: Vec<_> = cpu.features().collect();
        assert_eq!(names, ["sse2", "avx2", "avx512f", "amx_tile"]);
        let all: std::collections::BTreeSet<_> = FEATURES.iter().map(|f| (f.0, f.1)).collect();
        assert_eq!(all.len(), FEATURES.len());
    }

    #[test]
    fn what_is_strange_is_nothing_or_an_error() {
        assert_eq!(read(&CpuinfoEntry::default()).unwrap(), Cpuinfo::default());
        assert_eq!(read(&x86(vec![1 << 26])).unwrap().features().count(), 1);
        assert_eq!(read(&x86(vec![0; 999])).unwrap().words.len(), MAX_WORDS);
        let mut bad = x86(Vec::new());
        bad.x86_entry[0].capability_ver = None;
        assert!(matches!(read(&bad), Err(Error::MissingField { .. })));
    }
}
