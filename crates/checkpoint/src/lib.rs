//! What a checkpoint is: layouts, metadata, summaries.
#![forbid(unsafe_code)]
