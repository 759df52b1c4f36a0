use std::fmt;

/// First word of every framed image but the inventory.
pub(crate) const COMMON_MAGIC: u32 = 0x5456_4319;
/// First word of the service files: statistics and the irmap cache.
pub(crate) const SERVICE_MAGIC: u32 = 0x5510_5940;

/// What stands in a file after its magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Messages, each after its length: what [`crate::RawReader`] reads.
    Messages,
    /// Messages, each followed by raw bytes whose number the message tells.
    MessagesAndBytes,
    /// No magic and no messages: memory pages, tarballs, dumps of other tools.
    Bytes,
}

/// How many words of magic a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lead {
    /// [`COMMON_MAGIC`], then the kind's.
    Common,
    /// [`SERVICE_MAGIC`], then the kind's.
    Service,
    /// The kind's alone.
    Own,
    /// None.
    Raw,
}

/// The number in a file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    None,
    Decimal,
    Hex,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    prefix: &'static str,
    number: Number,
    suffix: &'static str,
    magic: u32,
    lead: Lead,
    body: Body,
}

/// Bounds on what is accepted from an image of one kind.
///
/// They stand far above what CRIU writes for the largest containers, and far below what could
/// exhaust the memory of a node. Changing them changes which checkpoints are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest message.
    pub entry_bytes: u32,
    /// Most messages in one file.
    pub entries: u64,
    /// Most bytes in one file, magic and lengths included.
    pub total_bytes: u64,
}

macro_rules! kinds {
    ($($name:ident $prefix:literal $number:ident $suffix:literal $magic:literal $lead:ident $body:ident;)*) => {
        /// Every kind of file that CRIU writes into an image or work directory.
        ///
        /// The variants are named after CRIU's own names for them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[allow(missing_docs)]
        pub enum Kind {
            $($name,)*
        }

        impl Kind {
            /// All of them, in no order that means anything.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        prefix: $prefix,
                        number: Number::$number,
                        suffix: $suffix,
                        magic: $magic,
                        lead: Lead::$lead,
                        body: Body::$body,
                    },)*
                }
            }
        }
    };
}

kinds! {
    Apparmor       "apparmor"       None    ".img"        0x5942_3047 Common Messages;
    Autofs         "autofs-"        Decimal ".img"        0x4935_3943 Common Messages;
    BinfmtMisc     "binfmt-misc"    None    ".img"        0x6734_3323 Common Messages;
    BpfmapData     "bpfmap-data"    None    ".img"        0x6432_4033 Common MessagesAndBytes;
    BpfmapFile     "bpfmap-file"    None    ".img"        0x5750_6142 Common Messages;
    Cgroup         "cgroup"         None    ".img"        0x5938_3330 Common Messages;
    Core           "core-"          Decimal ".img"        0x5505_3847 Common Messages;
    Cpuinfo        "cpuinfo"        None    ".img"        0x6140_4013 Common Messages;
    Creds          "creds-"         Decimal ".img"        0x5402_3547 Common Messages;
    Eventfd        "eventfd"        None    ".img"        0x4452_3722 Common Messages;
    Eventpoll      "eventpoll"      None    ".img"        0x4502_3858 Common Messages;
    EventpollTfd   "eventpoll-tfd"  None    ".img"        0x4443_3746 Common Messages;
    ExtFiles       "ext-files"      None    ".img"        0x5925_5641 Common Messages;
    FanotifyFile   "fanotify"       None    ".img"        0x5509_6122 Common Messages;
    FanotifyMark   "fanotify-mark"  None    ".img"        0x5650_6035 Common Messages;
    Fdinfo         "fdinfo-"        Decimal ".img"        0x5621_3732 Common Messages;
    Fifo           "fifo"           None    ".img"        0x5836_4939 Common Messages;
    FifoData       "fifo-data"      None    ".img"        0x5933_3054 Common MessagesAndBytes;
    FileLocks      "filelocks"      None    ".img"        0x5432_3616 Common Messages;
    Files          "files"          None    ".img"        0x5630_3138 Common Messages;
    Fs             "fs-"            Decimal ".img"        0x5140_3912 Common Messages;
    GhostFile      "ghost-file-"    Hex     ".img"        0x5258_3605 Common MessagesAndBytes;
    Ids            "ids-"           Decimal ".img"        0x5443_2030 Common Messages;
    Ifaddr         "ifaddr-"        Decimal ".img"        0 Raw Bytes;
    Inetsk         "inetsk"         None    ".img"        0x5644_3851 Common Messages;
    InotifyFile    "inotify"        None    ".img"        0x4842_4431 Common Messages;
    InotifyWd      "inotify-wd"     None    ".img"        0x5456_2009 Common Messages;
    Inventory      "inventory"      None    ".img"        0x5831_3116 Own    Messages;
    IpcnsMsg       "ipcns-msg-"     Decimal ".img"        0x5545_3737 Common MessagesAndBytes;
    IpcnsSem       "ipcns-sem-"     Decimal ".img"        0x5957_3019 Common MessagesAndBytes;
    IpcnsShm       "ipcns-shm-"     Decimal ".img"        0x4628_3044 Common MessagesAndBytes;
    IpcVar         "ipcns-var-"     Decimal ".img"        0x5311_5007 Common Messages;
    Iptables       "iptables-"      Decimal ".img"        0 Raw Bytes;
    Ip6tables      "ip6tables-"     Decimal ".img"        0 Raw Bytes;
    IrmapCache     "irmap-cache"    None    ""            0x5700_4059 Service Messages;
    Itimers        "itimers-"       Decimal ".img"        0x5746_4056 Common Messages;
    MemfdInode     "memfd"          None    ".img"        0x4845_3499 Common Messages;
    Mm             "mm-"            Decimal ".img"        0x5749_2820 Common Messages;
    Mountpoints    "mountpoints-"   Decimal ".img"        0x5556_3928 Common Messages;
    Netdev         "netdev-"        Decimal ".img"        0x5737_3951 Common Messages;
    NetlinkSk      "netlinksk"      None    ".img"        0x5800_5614 Common Messages;
    Netns          "netns-"         Decimal ".img"        0x5593_3752 Common Messages;
    NetnsCt        "netns-ct-"      Decimal ".img"        0 Raw Bytes;
    NetnsExp       "netns-exp-"     Decimal ".img"        0 Raw Bytes;
    Nftables       "nftables-"      Decimal ".img"        0 Raw Bytes;
    NsFiles        "ns-files"       None    ".img"        0x6139_4011 Common Messages;
    Packetsk       "packetsk"       None    ".img"        0x6045_4618 Common Messages;
    Pagemap        "pagemap-"       Decimal ".img"        0x5608_4025 Common Messages;
    PagemapShmem   "pagemap-shmem-" Decimal ".img"        0x5608_4025 Common Messages;
    Pages          "pages-"         Decimal ".img"        0 Raw Bytes;
    Pidfd          "pidfd"          None    ".img"        0x5443_5556 Common Messages;
    Pidns          "pidns-"         Decimal ".img"        0x6115_7326 Common Messages;
    Pipes          "pipes"          None    ".img"        0x5651_3555 Common Messages;
    PipesData      "pipes-data"     None    ".img"        0x5645_3709 Common MessagesAndBytes;
    PosixTimers    "posix-timers-"  Decimal ".img"        0x5260_3957 Common Messages;
    Pstree         "pstree"         None    ".img"        0x5027_3030 Common Messages;
    RegFiles       "reg-files"      None    ".img"        0x5036_3636 Common Messages;
    RemapFpath     "remap-fpath"    None    ".img"        0x5913_3954 Common Messages;
    Rlimit         "rlimit-"        Decimal ".img"        0x5711_3925 Common Messages;
    Route          "route-"         Decimal ".img"        0 Raw Bytes;
    Route6         "route6-"        Decimal ".img"        0 Raw Bytes;
    Rule           "rule-"          Decimal ".img"        0 Raw Bytes;
    Seccomp        "seccomp"        None    ".img"        0x6441_3049 Common Messages;
    Sigacts        "sigacts-"       Decimal ".img"        0x5534_4201 Common Messages;
    SignalProcess  "signal-p-"      Decimal ".img"        0x5925_5647 Common Messages;
    SignalShared   "signal-s-"      Decimal ".img"        0x5925_5647 Common Messages;
    Signalfd       "signalfd"       None    ".img"        0x5732_3820 Common Messages;
    SkQueues       "sk-queues"      None    ".img"        0x5626_4026 Common MessagesAndBytes;
    StatsDump      "stats-dump"     None    ""            0x5709_3306 Service Messages;
    StatsRestore   "stats-restore"  None    ""            0x5709_3306 Service Messages;
    TcpStream      "tcp-stream-"    Hex     ".img"        0x5146_5506 Common MessagesAndBytes;
    Timens         "timens-"        Decimal ".img"        0x4311_4433 Common Messages;
    Timerfd        "timerfd"        None    ".img"        0x5049_3712 Common Messages;
    Tmpfs          "tmpfs-"         Decimal ".tar.gz.img" 0 Raw Bytes;
    TmpfsDev       "tmpfs-dev-"     Decimal ".tar.gz.img" 0 Raw Bytes;
    TtyData        "tty-data"       None    ".img"        0x5941_3026 Common Messages;
    TtyFiles       "tty"            None    ".img"        0x5943_3025 Common Messages;
    TtyInfo        "tty-info"       None    ".img"        0x5945_3036 Common Messages;
    Tunfile        "tunfile"        None    ".img"        0x5714_3751 Common Messages;
    Unixsk         "unixsk"         None    ".img"        0x5437_3943 Common Messages;
    Userns         "userns-"        Decimal ".img"        0x5547_4906 Common Messages;
    Utsns          "utsns-"         Decimal ".img"        0x5447_3203 Common Messages;
    Vmas           "vmas-"          Decimal ".img"        0x5412_3737 Common Messages;
}

impl Kind {
    /// The kind's own magic; 0 for raw files, which have none.
    pub const fn magic(self) -> u32 {
        self.row().magic
    }

    /// What stands after the magic.
    pub const fn body(self) -> Body {
        self.row().body
    }

    pub(crate) const fn lead(self) -> Lead {
        self.row().lead
    }

    /// The name of the file, e.g. `core-1.img`; `number` is passed over where the kind has none.
    pub fn file_name(self, number: u64) -> String {
        let row = self.row();
        match row.number {
            Number::None => format!("{}{}", row.prefix, row.suffix),
            Number::Decimal => format!("{}{number}{}", row.prefix, row.suffix),
            Number::Hex => format!("{}{number:x}{}", row.prefix, row.suffix),
        }
    }

    /// The kind of a file, and the number in its name, by that name; `None` for names that CRIU
    /// does not write.
    pub fn of_file_name(name: &str) -> Option<(Self, Option<u64>)> {
        Self::ALL.iter().find_map(|&kind| {
            let row = kind.row();
            let middle = name.strip_prefix(row.prefix)?.strip_suffix(row.suffix)?;
            let radix = match row.number {
                Number::None => return middle.is_empty().then_some((kind, None)),
                Number::Decimal => 10,
                Number::Hex => 16,
            };
            let number = u64::from_str_radix(middle, radix).ok()?;
            // One spelling per number: no sign, no leading zero, no capital.
            (kind.file_name(number) == name).then_some((kind, Some(number)))
        })
    }

    /// The bounds that [`crate::RawReader`] holds an image of this kind to.
    pub const fn limits(self) -> Limits {
        const MIB: u64 = 1 << 20;
        match self {
            // One message per file.
            Self::Inventory | Self::Ids | Self::Cpuinfo | Self::StatsDump | Self::StatsRestore => {
                Limits {
                    entry_bytes: 64 << 10,
                    entries: 1,
                    total_bytes: MIB,
                }
            }
            // All memory areas of a process, or all files of a namespace, in one message.
            Self::Mm | Self::Apparmor | Self::Seccomp | Self::Cgroup => Limits {
                entry_bytes: 64 << 20,
                entries: 1 << 20,
                total_bytes: 64 * MIB,
            },
            // One message per task, descriptor or mount; these are kept in memory.
            Self::Pstree | Self::Fdinfo | Self::Mountpoints => Limits {
                entry_bytes: 1 << 20,
                entries: 1 << 20,
                total_bytes: 64 * MIB,
            },
            // Passed over one message at a time.
            _ => Limits {
                entry_bytes: 1 << 20,
                entries: 1 << 26,
                total_bytes: 4096 * MIB,
            },
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().prefix.trim_end_matches('-'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_kinds_map_both_ways() {
        for &kind in Kind::ALL {
            for number in [0, 1, 4096, u64::MAX] {
                let name = kind.file_name(number);
                let (found, found_number) = Kind::of_file_name(&name).unwrap();
                assert_eq!(found, kind, "{name}");
                assert!(found_number.is_none_or(|n| n == number), "{name}");
            }
        }
    }

    #[test]
    fn known_names() {
        let cases = [
            ("inventory.img", Some((Kind::Inventory, None))),
            ("core-1.img", Some((Kind::Core, Some(1)))),
            ("pagemap-shmem-7.img", Some((Kind::PagemapShmem, Some(7)))),
            ("tmpfs-dev-73.tar.gz.img", Some((Kind::TmpfsDev, Some(73)))),
            ("ghost-file-ff.img", Some((Kind::GhostFile, Some(255)))),
            ("stats-dump", Some((Kind::StatsDump, None))),
            ("core-01.img", None),
            ("core-+1.img", None),
            ("core-.img", None),
            ("core-1.img.img", None),
            ("ghost-file-FF.img", None),
            ("dump.log", None),
            ("descriptors.json", None),
            ("../core-1.img", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(Kind::of_file_name(name), expected, "{name}");
        }
    }

    #[test]
    fn only_raw_files_lack_a_magic() {
        for &kind in Kind::ALL {
            assert_eq!(kind.magic() == 0, kind.body() == Body::Bytes, "{kind}");
            assert_eq!(kind.magic() == 0, kind.lead() == Lead::Raw, "{kind}");
        }
    }
}
