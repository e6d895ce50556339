//! Llama on the device against the float64 reference: logits, every gradient, and incremental decoding.

use polytape::gpu::KernelTier;
use polytape::llama::{KvCache, Llama, LlamaConfig, RopeScaling};
use polytape::{Error, Gpu, GpuOptions, Gradients, Indices, Params, Precision, Tape, Tensor};
use rand::RngExt;

use super::small::{SEQ, batch, config};
use crate::device;
use crate::golden::hugging_face_name;
use crate::ops::precision::operands;
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::reference::half::Operands;
use crate::reference::llama::{self, Batch, Weights};
use crate::reference::rotary::{Rotary, Scaling};
use crate::tolerance::{Tolerance, assert_close};

/// Two blocks of attention, norms and SwiGLU, each with a few rounding errors of sums of at most 50 terms.
const MODEL: Tolerance = Tolerance { relative: 2e-5, reason: "errors of all layers, relative to the rms of the result" };

fn reference_config(config: &LlamaConfig) -> llama::LlamaConfig {
    llama::LlamaConfig {
        vocab: config.vocab,
        dim: config.dim,
        intermediate_size: config.intermediate_size,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim(),
        norm_eps: f64::from(config.norm_eps),
        theta: config.rope_theta,
        scaling: reference_scaling(config.rope_scaling),
        qk_norm: config.qk_norm,
        tied: config.tied,
        operands: Operands::Whole,
    }
}

pub fn reference_scaling(scaling: Option<RopeScaling>) -> Scaling {
    match scaling {
        None => Scaling::None,
        Some(RopeScaling::Linear { factor }) => Scaling::Linear { factor },
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq_len }) => {
            Scaling::Llama3 { factor, low: low_freq_factor, high: high_freq_factor, original: original_seq_len as f64 }
        }
        Some(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_seq_len, attention_factor }) => {
            let original = original_seq_len as f64;
            Scaling::Yarn { factor, fast: beta_fast, slow: beta_slow, original, attention: attention_factor }
        }
    }
}

/// The device's initial weights under the reference's names, and those names with the device's.
fn weights(config: &llama::LlamaConfig, params: &Params) -> (Weights, Vec<(String, String)>) {
    let names: Vec<(String, String)> =
        config.parameter_names().into_iter().map(|name| (name.clone(), hugging_face_name(&name))).collect();
    let array = |(short, stored): &(String, String)| {
        let tensor = &params.get(params.id(stored).expect("the same names")).expect("a parameter").tensor;
        (short.clone(), Array::from_f32(tensor.shape(), &tensor.to_vec().expect("read-back")))
    };
    (names.iter().map(array).collect(), names)
}

/// Initial weights scaled up, so that attention is far from uniform and every gradient matters.
fn sharpened(gpu: &Gpu, config: LlamaConfig) -> (Llama, Params) {
    let (model, mut params) = Llama::init(gpu, config, 9).expect("a model");
    let matrices: Vec<_> = params.iter().filter(|(_, param)| param.role == polytape::Role::Matrix).map(|(id, _)| id).collect();
    for id in matrices {
        let scaled = params.get(id).expect("a parameter").tensor.scaled(8.0).expect("a scaled matrix");
        params.set(id, scaled).expect("the same shape");
    }
    (model, params)
}

fn check_gradients(config: LlamaConfig) {
    for gpu in device::all() {
        let (model, params) = sharpened(gpu, config.clone());
        let reference = reference_config(&config);
        let (weights, names) = weights(&reference, &params);
        let (inputs, targets) = batch(gpu, 1).expect("a batch");
        let tape = Tape::new(&params);
        let loss = model.loss(&tape, &inputs, &targets, SEQ).expect("a loss");
        let mut gradients = Gradients::new();
        tape.backward(&loss, &mut gradients).expect("gradients");
        let host = Batch { seq: SEQ, inputs: inputs.values().to_vec(), targets: targets.values().to_vec() };
        let (want, wanted) = llama::loss_and_gradients(&reference, &weights, &host);
        let found = loss.value().item().expect("read-back");
        assert!((f64::from(found) - want).abs() < 1e-6 * want, "loss {found}, want {want}");
        for (short, stored) in &names {
            let id = params.id(stored).expect("the same names");
            let gradient = gradients.get(id).unwrap_or_else(|| panic!("no gradient of {stored}"));
            assert_close(
                &format!("{stored}, {} kernels", gpu.kernels()),
                &gradient.to_vec().expect("read-back"),
                &wanted[short],
                MODEL,
            );
        }
        assert_eq!(gradients.iter().count(), names.len());
    }
}

#[test]
fn gradients_of_grouped_heads_match() {
    check_gradients(config());
    check_gradients(LlamaConfig { kv_heads: 1, ..config() });
    check_gradients(LlamaConfig { kv_heads: 4, layers: 1, ..config() });
}

/// Loss and gradients of two micro-batches, by name, and the number of dispatches.
fn sums(model: &Llama, params: &Params, precision: Precision) -> (Vec<(String, Vec<u32>)>, u64) {
    let gpu = params.gpu();
    let before = gpu.counters().dispatches;
    let mut gradients = Gradients::new();
    let mut results = Vec::new();
    for number in 0..2 {
        let (inputs, targets) = batch(gpu, number).expect("a batch");
        let tape = Tape::new(params).with_precision(precision);
        let loss = model.loss(&tape, &inputs, &targets, SEQ).expect("a loss");
        tape.backward(&loss, &mut gradients).expect("gradients");
        results.push(("loss".to_string(), loss.value().clone()));
    }
    results.extend(gradients.iter().map(|(id, sum)| (params.get(id).expect("a parameter").name.clone(), sum.clone())));
    let dispatches = gpu.counters().dispatches - before;
    let bits = |tensor: Tensor| tensor.to_vec().expect("read-back").into_iter().map(f32::to_bits).collect();
    (results.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect(), dispatches)
}

/// The matrices of one input lie one after the other, and are one product, unless something has moved them: which changes no bit.
#[test]
fn how_matrices_lie_changes_no_bit() {
    let config = config();
    let configs = [
        LlamaConfig { kv_heads: 4, ..config.clone() },
        config.clone(),
        LlamaConfig { qk_norm: true, kv_heads: 4, ..config.clone() },
        LlamaConfig { checkpoint_activations: true, kv_heads: 4, ..config },
    ];
    for (shared, config) in device::all().iter().flat_map(|gpu| configs.iter().map(move |config| (gpu, config))) {
        // Its own, whose dispatches no other test adds to.
        let options = GpuOptions { kernels: Some(shared.kernels()), ..Default::default() };
        let gpu = &device::open(&options).expect("the adapter opened before");
        for precision in Precision::ALL {
            let (model, together) = Llama::init(gpu, config.clone(), 9).expect("a model");
            let mut apart = together.clone();
            for (id, param) in together.iter() {
                apart.set(id, param.tensor.duplicate().expect("a copy")).expect("the same shape");
            }
            let (found, few) = sums(&model, &together, precision);
            let (wanted, many) = sums(&model, &apart, precision);
            assert!(few < many, "{few} dispatches, {many} apart: {config:?} with {} kernels", gpu.kernels());
            for ((name, found), (_, wanted)) in found.iter().zip(&wanted) {
                assert!(found == wanted, "{name} at {precision} with {} kernels: {config:?}", gpu.kernels());
            }
        }
    }
}

#[test]
fn a_tied_embedding_gets_the_gradients_of_both_its_uses() {
    check_gradients(LlamaConfig { tied: true, ..config() });
}

const LLAMA3: RopeScaling =
    RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_seq_len: 24 };
const YARN: RopeScaling =
    RopeScaling::Yarn { factor: 4.0, beta_fast: 8.0, beta_slow: 1.0, original_seq_len: 24, attention_factor: 1.25 };

/// Heads wider and narrower than dim / heads = 8.
#[test]
fn gradients_of_other_head_widths_match() {
    check_gradients(LlamaConfig { head_dim: Some(12), ..config() });
    check_gradients(LlamaConfig { head_dim: Some(6), tied: true, ..config() });
}

#[test]
fn gradients_of_normed_heads_match() {
    check_gradients(LlamaConfig { qk_norm: true, ..config() });
    check_gradients(LlamaConfig { qk_norm: true, head_dim: Some(12), checkpoint_activations: true, ..config() });
}

#[test]
fn gradients_of_stretched_rotary_frequencies_match() {
    for scaling in [RopeScaling::Linear { factor: 4.0 }, LLAMA3, YARN] {
        check_gradients(LlamaConfig { rope_scaling: Some(scaling), rope_theta: 100.0, ..config() });
    }
}

/// The library's formulas against the reference's, which are those of the papers, for the published sizes and for odd ones.
#[test]
fn rotary_frequencies_match() {
    let llama31 = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_seq_len: 8192 };
    let yarn = |factor, beta_fast, beta_slow, original_seq_len| {
        Some(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_seq_len, attention_factor: 1.0 })
    };
    let scalings = [
        None,
        Some(RopeScaling::Linear { factor: 2.5 }),
        Some(llama31),
        Some(LLAMA3),
        yarn(4.0, 32.0, 1.0, 32_768),
        yarn(40.0, 16.0, 2.0, 4096),
        // The ramp begins and ends at the same index, and before the first.
        yarn(4.0, 1.0, 1.0, 7),
        yarn(4.0, 32.0, 1.0, 5),
    ];
    for (scaling, head_dim) in scalings.iter().flat_map(|scaling| [(scaling, 128), (scaling, 64), (scaling, 6)]) {
        for rope_theta in [500_000.0, 10_000.0, 2.0] {
            let sizes = LlamaConfig { rope_scaling: *scaling, head_dim: Some(head_dim), rope_theta, ..config() };
            let scaling = reference_scaling(*scaling);
            let reference = Rotary { seq: 1, head_dim, offset: 0, theta: rope_theta, scaling };
            let found = sizes.rope_frequencies();
            assert_eq!(found.len(), head_dim / 2);
            for (i, found) in found.into_iter().enumerate() {
                let want = reference.frequency(i);
                assert!((found / want - 1.0).abs() < 1e-12, "{sizes:?}: {i}: {found}, want {want}");
            }
        }
    }
    assert_eq!(RopeScaling::yarn_attention_factor(1.0), 1.0);
    assert!((RopeScaling::yarn_attention_factor(4.0) - 1.138_629_436_111_989).abs() < 1e-15);
}

/// Distance of two sets of gradients, relative to the second.
fn distance(found: &Array, want: &Array) -> f64 {
    found.minus(want).norm() / want.norm()
}

/// Against a reference that rounds the operands of linear layers: an activation off by an f32 rounding error sometimes rounds to another
/// f16, so the device is not as close as at f32, but much closer than to the exact model. Matrix units round those of attention, too,
/// which the reference does not: there f16 is about as far from both.
#[test]
fn gradients_at_lower_precision_are_those_of_rounded_linear_layers() {
    let config = config();
    for (gpu, checkpoint_activations) in device::all().iter().flat_map(|gpu| [(gpu, false), (gpu, true)]) {
        let (model, params) = sharpened(gpu, LlamaConfig { checkpoint_activations, ..config.clone() });
        let exact = reference_config(&config);
        let (weights, names) = weights(&exact, &params);
        let (inputs, targets) = batch(gpu, 1).expect("a batch");
        let host = Batch { seq: SEQ, inputs: inputs.values().to_vec(), targets: targets.values().to_vec() };
        let (_, unrounded) = llama::loss_and_gradients(&exact, &weights, &host);
        for precision in [Precision::F16x3, Precision::F16] {
            let tape = Tape::new(&params).with_precision(precision);
            let loss = model.loss(&tape, &inputs, &targets, SEQ).expect("a loss");
            let mut gradients = Gradients::new();
            tape.backward(&loss, &mut gradients).expect("gradients");
            let rounded = llama::LlamaConfig { operands: operands(precision), ..exact };
            let (want, wanted) = llama::loss_and_gradients(&rounded, &weights, &host);
            let loss = f64::from(loss.value().item().expect("read-back"));
            let rounds_attention = precision == Precision::F16 && gpu.kernels() == KernelTier::Matrix;
            let limit = if rounds_attention { 1e-3 } else { 1e-5 };
            assert!((loss - want).abs() < limit * want, "{precision}: loss {loss}, want {want}");
            for (short, stored) in &names {
                let gradient = gradients.get(params.id(stored).expect("the same names")).expect("a gradient");
                let gradient = Array::from_f32(gradient.shape(), &gradient.to_vec().expect("read-back"));
                let (to_rounded, to_exact) = (distance(&gradient, &wanted[short]), distance(&gradient, &unrounded[short]));
                let context = format!("{stored} at {precision}, {} kernels: {to_rounded:e}, {to_exact:e}", gpu.kernels());
                match precision {
                    Precision::F16 if rounds_attention => {
                        assert!(to_rounded < 1e-2 && (1e-4..1e-2).contains(&to_exact), "{context}")
                    }
                    Precision::F16 => assert!(to_rounded < 0.5 * to_exact && (1e-4..1e-2).contains(&to_exact), "{context}"),
                    _ => assert!(to_rounded < 2e-6 && to_exact < 2e-6, "{context}"),
                }
            }
        }
    }
}

#[test]
fn a_fresh_model_guesses() {
    for tied in [false, true] {
        let config = LlamaConfig { max_seq_len: 64, tied, ..LlamaConfig::new(128, 2, 4, 512) };
        let (model, params) = Llama::init(device::default(), config, 11).expect("a model");
        let tokens = |seed| {
            let mut rng = seeded(seed);
            let drawn: Vec<u32> = (0..64).map(|_| rng.random_range(0..512)).collect();
            Indices::from_slice(device::default(), &drawn).expect("tokens")
        };
        let tape = Tape::inference(&params);
        let loss = model.loss(&tape, &tokens(1), &tokens(2), 64).expect("a loss");
        let loss = f64::from(loss.value().item().expect("read-back"));
        assert!((loss - 512_f64.ln()).abs() < 0.8, "loss {loss}, ln 512 is {}", 512_f64.ln());
    }
}

#[test]
fn logits_match_and_a_cache_continues_them() {
    for gpu in device::all() {
        let wide = LlamaConfig { head_dim: Some(12), qk_norm: true, rope_scaling: Some(YARN), ..config() };
        for config in [config(), wide] {
            logits_match(gpu, config);
        }
    }
}

fn logits_match(gpu: &Gpu, config: LlamaConfig) {
    let (model, params) = sharpened(gpu, config);
    let reference = reference_config(model.config());
    let (weights, _) = weights(&reference, &params);
    let tokens: Vec<u32> = vec![3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32];
    let want = llama::logits(&reference, &weights, &tokens, tokens.len());
    let tape = Tape::inference(&params);
    let all = Indices::from_slice(gpu, &tokens).expect("tokens");
    let logits = model.logits(&tape, &all, tokens.len()).expect("logits");
    assert_close("logits", &logits.value().to_vec().expect("read-back"), &want, MODEL);
    // One by one from the start, and after a prompt of several tokens at once.
    for prompt in [1, 5, 12] {
        let mut cache = model.cache(1, tokens.len()).expect("a cache");
        let mut next = 0;
        while next < tokens.len() {
            let count = if next == 0 { prompt } else { 1 };
            let part = Indices::from_slice(gpu, &tokens[next..next + count]).expect("tokens");
            let found = model.next_logits(&params, &part, &mut cache).expect("logits");
            next += count;
            assert_eq!(cache.tokens(), next);
            let row = Array::new(&[1, want.shape[1]], want.row(next - 1).to_vec());
            let name = format!("logits after {next} tokens, prompt of {prompt}, {} kernels", gpu.kernels());
            assert_close(&name, &found.to_vec().expect("read-back"), &row, MODEL);
        }
    }
}

/// Sequences of 70 tokens, which are several rounds of the attention's lanes, with heads whose width is and is not a multiple of 4.
#[test]
fn a_cache_of_several_sequences_gives_what_a_full_forward_gives() {
    const TOKENS: usize = 70;
    for (gpu, head_dim) in device::all().iter().flat_map(|gpu| [(gpu, 8), (gpu, 6), (gpu, 36)]) {
        let sizes = LlamaConfig { max_seq_len: TOKENS, kv_heads: 2, ..LlamaConfig::new(4 * head_dim, 2, 4, 50) };
        let (model, params) = sharpened(gpu, sizes);
        let tokens: Vec<u32> = (0..3 * TOKENS as u32).map(|i| (i * i + i / 7) % 50).collect();
        let tape = Tape::inference(&params);
        let all = Indices::from_slice(gpu, &tokens).expect("tokens");
        let full = model.logits(&tape, &all, TOKENS).and_then(|logits| logits.value().to_vec()).expect("logits");
        // A capacity beyond the tokens, so that keys are not where the sequences end.
        let mut cache = model.cache(3, TOKENS + 5).expect("a cache");
        for range in [0..3, 3..4, 4..62, 62..63, 63..64, 64..65, 65..66, 66..69, 69..70] {
            let part: Vec<u32> = tokens.chunks(TOKENS).flat_map(|sequence| sequence[range.clone()].to_vec()).collect();
            let part = Indices::from_slice(gpu, &part).expect("tokens");
            let found = model.next_logits(&params, &part, &mut cache).expect("logits");
            assert_eq!(found.shape(), [3, 50]);
            let rows = full.chunks(50).skip(range.end - 1).step_by(TOKENS).collect::<Vec<_>>().concat();
            let name = format!("logits after {} tokens, heads of {head_dim}, {} kernels", range.end, gpu.kernels());
            assert_close(&name, &found.to_vec().expect("read-back"), &Array::from_f32(&[3, 50], &rows), MODEL);
        }
    }
}

#[test]
fn generating_takes_the_same_memory_for_every_token() {
    const TOKENS: usize = 70;
    const WARM_UP: usize = 4;
    for shared in device::all() {
        // Its own, whose memory no other test uses.
        let options = GpuOptions { kernels: Some(shared.kernels()), ..Default::default() };
        let gpu = &device::open(&options).expect("the adapter opened before");
        let (model, params) = sharpened(gpu, LlamaConfig { max_seq_len: TOKENS, ..config() });
        let mut cache = model.cache(1, TOKENS).expect("a cache");
        let allocated_after = |token: usize| {
            let fed = Indices::from_slice(gpu, &[(token % 50) as u32]).expect("tokens");
            model.next_logits(&params, &fed, &mut cache).and_then(|logits| logits.to_vec()).expect("logits");
            gpu.memory().allocated
        };
        let allocated: Vec<u64> = (0..TOKENS).map(allocated_after).collect();
        let flat = allocated[WARM_UP..].iter().all(|bytes| *bytes == allocated[WARM_UP]);
        assert!(flat, "{} kernels: {allocated:?}", gpu.kernels());
    }
}

#[test]
fn stacked_caches_go_on_as_each_would_alone() {
    for gpu in device::all() {
        let (model, params) = sharpened(gpu, config());
        let feed = |tokens: &[u32], cache: &mut KvCache| {
            let fed = Indices::from_slice(gpu, tokens).expect("tokens");
            model.next_logits(&params, &fed, cache).and_then(|logits| logits.to_vec()).expect("logits")
        };
        let next = |row: usize, step: usize| (7 * row + 3 * step) as u32 % 50;
        let alone = |prompt: &[u32], row: usize| {
            let mut cache = model.cache(1, 6).expect("a cache");
            feed(prompt, &mut cache);
            (0..3).map(|step| feed(&[next(row, step)], &mut cache)).collect::<Vec<_>>()
        };
        let prompts = [[3, 14, 15], [9, 26, 5]];
        let begun = prompts.map(|prompt| {
            let mut cache = model.cache(1, 3).expect("a cache");
            feed(&prompt, &mut cache);
            cache
        });
        let mut stacked = KvCache::stack(&[&begun[0], &begun[0], &begun[1]], 6).expect("a cache");
        assert_eq!([stacked.batch(), stacked.tokens(), stacked.capacity()], [3, 3, 6]);
        let wanted = [alone(&prompts[0], 0), alone(&prompts[0], 1), alone(&prompts[1], 2)];
        for step in 0..3 {
            let found = feed(&[0, 1, 2].map(|row| next(row, step)), &mut stacked);
            // To the bit: what is sampled must not depend on what is sampled beside it.
            assert_eq!(found, wanted.each_ref().map(|steps| steps[step].clone()).concat(), "{} kernels", gpu.kernels());
        }
    }
}

#[test]
fn what_does_not_fit_a_cache_is_refused() {
    let gpu = device::default();
    let (model, params) = Llama::init(gpu, config(), 0).expect("a model");
    let feed = |tokens: &[u32], cache: &mut KvCache| {
        let fed = Indices::from_slice(gpu, tokens).expect("tokens");
        model.next_logits(&params, &fed, cache).map(drop)
    };
    let text = |result: polytape::Result<()>| result.expect_err("an error").to_string();
    let mut cache = model.cache(2, 3).expect("a cache");
    assert_eq!(text(feed(&[1, 2, 3], &mut cache)), "kv cache: 3 tokens for 2 sequences: the same number for each expected");
    feed(&[1, 2, 3, 4], &mut cache).expect("room for two each");
    assert_eq!(text(feed(&[1, 2, 3, 4], &mut cache)), "kv cache: 2 tokens after 2 exceed its capacity of 3");
    feed(&[1, 2], &mut cache).expect("room for one more");

    let shallow = LlamaConfig { layers: 1, ..config() };
    let (shallow, _) = Llama::init(gpu, shallow, 0).expect("a model");
    let columns = config().kv_heads * config().head_dim();
    let want = format!("kv cache: made for 1 blocks of {columns} columns, the model has {} of {columns}", config().layers);
    assert_eq!(text(feed(&[1], &mut shallow.cache(1, 3).expect("a cache"))), want);

    match KvCache::stack(&[&cache], 2).map(drop) {
        Err(Error::Shape { shapes, .. }) => assert_eq!(shapes, [[2, 3, columns]]),
        other => panic!("an error of shapes expected, found {other:?}"),
    }
    let stack = |caches: &[&KvCache], capacity| text(KvCache::stack(caches, capacity).map(drop));
    assert_eq!(stack(&[], 3), "kv cache: no caches to stack");
    assert_eq!(stack(&[&cache], 2), "kv cache: 3 tokens to stack: 1 to the capacity of 2 expected");
    let empty = model.cache(1, 3).expect("a cache");
    assert!(stack(&[&cache, &empty], 3).contains("do not stack"));
}

#[test]
fn a_batch_of_sequences_is_each_of_them_alone() {
    for gpu in device::all() {
        let (model, params) = sharpened(gpu, config());
        let tokens: Vec<u32> = (0..2 * SEQ as u32).map(|i| (i * i + 3) % 50).collect();
        let logits = |tokens: &[u32]| {
            let tape = Tape::inference(&params);
            let indices = Indices::from_slice(gpu, tokens).expect("tokens");
            model.logits(&tape, &indices, SEQ).and_then(|logits| logits.value().to_vec()).expect("logits")
        };
        let [first, second] = [logits(&tokens[..SEQ]), logits(&tokens[SEQ..])];
        let alone = Array::from_f32(&[2 * SEQ, 50], &[first, second].concat());
        assert_close("logits", &logits(&tokens), &alone, MODEL);
    }
}

#[test]
fn what_is_no_llama_is_refused() {
    let gpu = device::default();
    let text = |config: LlamaConfig| Llama::init(gpu, config, 0).map(|_| ()).expect_err("an error").to_string();
    assert!(text(LlamaConfig { heads: 5, kv_heads: 5, ..config() }).contains("a dim of 32 divided by 5 heads"));
    assert!(text(LlamaConfig { kv_heads: 3, ..config() }).contains("4 heads to be a multiple of 3 kv_heads"));
    assert!(text(LlamaConfig { vocab: 0, ..config() }).contains("sizes above 0"));
    for head_dim in [7, 258] {
        assert!(text(LlamaConfig { head_dim: Some(head_dim), ..config() }).contains("heads of an even width up to 256"));
    }
    for rope_theta in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        assert!(text(LlamaConfig { rope_theta, ..config() }).contains("a rope_theta above 0"));
    }
    let scaled = |scaling| text(LlamaConfig { rope_scaling: Some(scaling), ..config() });
    assert!(scaled(RopeScaling::Linear { factor: 0.5 }).contains("a rope factor of at least 1"));
    let llama3 = RopeScaling::Llama3 { factor: 2.0, low_freq_factor: 4.0, high_freq_factor: 4.0, original_seq_len: 24 };
    assert!(scaled(llama3).contains("a high_freq_factor above low_freq_factor"));
    let (model, params) = Llama::init(gpu, config(), 0).expect("a model");
    let tape = Tape::inference(&params);
    let tokens = Indices::from_slice(gpu, &[1, 2, 3]).expect("tokens");
    let error = model.logits(&tape, &tokens, 2).map(|_| ()).expect_err("half a sequence");
    assert_eq!(error.to_string(), "llama: 3 tokens: whole sequences of 2 expected");
}
