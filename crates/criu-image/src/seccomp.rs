//! `seccomp.img`: the filters of all tasks. A thread's core image names the first of its chain.

use crate::msg::SeccompEntry;
use crate::{At, Error, Kind, View};

/// A filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Its instructions, `struct sock_filter`s of eight bytes.
    pub program: Vec<u8>,
    /// The one that was loaded after it, and on top of it, by its position in the image. CRIU's
    /// own name for the field says the opposite.
    pub next: Option<u32>,
    /// `SECCOMP_FILTER_FLAG_...`
    pub flags: u32,
}

/// All filters, by their positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filters(pub Vec<Filter>);

impl View for Filters {
    type Wire = SeccompEntry;

    const KIND: Kind = Kind::Seccomp;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let filters = wire.seccomp_filters.into_iter().map(|filter| {
            Ok(Filter {
                program: at.need(filter.filter, "filter")?,
                next: filter.prev,
                flags: filter.flags.unwrap_or_default(),
            })
        });
        filters.collect::<Result<_, _>>().map(Self)
    }
}
