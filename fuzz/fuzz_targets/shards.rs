//! Token shards: the first byte says how many of the last ones are the index, ours or Megatron's, the second the vocabulary.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(([index, vocab], shard)) = bytes.split_first_chunk() else { return };
    let (bin, idx) = shard.split_at(shard.len().saturating_sub(usize::from(*index)));
    let idx = (*index > 0).then_some(idx);
    llama_pc_fuzz::scratch(|scratch| scratch.shards(bin, idx, usize::from(*vocab) + 1));
});
