//! Tests of reading, overriding and checking configurations.

use super::super::*;
use super::*;

fn parse(text: &str, sets: &[&str]) -> Result<Config, String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("test.toml");
    std::fs::write(&path, text).expect("the file is written");
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Config::load(Some(&path), &sets).map_err(|failure| {
        assert_eq!(failure.status, 2);
        failure.to_string().replace(&format!("{}", path.display()), "test.toml")
    })
}

fn error(text: &str) -> String {
    parse(text, &[]).expect_err("a configuration that must be refused")
}

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(parse("", &[]), Ok(Config::default()));
    assert_eq!(parse("[pc]\n", &[]), Ok(Config { pc: Some(Pc::default()), ..Config::default() }));
}

#[test]
fn the_resolved_file_reads_back_the_same() {
    let text =
        "seed = 9\n[model]\npreset = \"1B\"\n[pc]\ntargets = [\"qk\", \"down\"]\nlevel = 2\n[optimizer]\nkind = \"muon\"\nlr = 1";
    let mut config = parse(text, &[]).expect("a good file");
    assert_eq!(config.resolve_vocab(None).expect("the preset's"), 32_000);
    let written = config.to_toml();
    assert!(!written.contains("preset"), "{written}");
    assert_eq!(parse(&written, &[]), Ok(config));
}

#[test]
fn the_schema_lists_exactly_the_written_keys() {
    let pc = Pc { coefficients: Some(vec![1.0]), ..Pc::default() };
    let mut config = Config { pc: Some(pc), ..Config::default() };
    config.model.preset = Some("20M".to_owned());
    config.model.vocab = Some(7);
    config.model.rope_factor = Some(8.0);
    config.model.rope_original_seq_len = Some(64);
    config.model.rope_low_freq_factor = Some(1.0);
    config.model.rope_high_freq_factor = Some(4.0);
    config.model.rope_beta_fast = Some(32.0);
    config.model.rope_beta_slow = Some(1.0);
    config.model.rope_attention_factor = Some(1.0);
    config.model.init_scale.insert(Target::O, 2.0);
    let table: Table = config.to_toml().parse().expect("TOML");
    let written: usize = table.values().map(|value| value.as_table().map_or(1, Table::len)).sum();
    assert_eq!(written, schema::KEYS.len());
    assert!(check_table(&table).is_ok());
}

#[test]
fn initial_scales_are_factors_per_matrix() {
    let config = parse("[model]\ninit_scale = { o = 2, ffn = 1.5 }", &[]).expect("a good file");
    let factors: Vec<(Target, f64)> = config.model.init_scale.clone().into_iter().collect();
    assert_eq!(factors, [(Target::O, 2.0), (Target::Gate, 1.5), (Target::Up, 1.5), (Target::Down, 1.5)]);
    assert_eq!(parse(&config.to_toml(), &[]), Ok(config.clone()));
    assert_eq!(parse("", &["model.init_scale={ qk = 3.0 }"]).map(|config| config.model.init_scale.len()), Ok(2));
    assert_eq!(
        error("[model]\ninit_scale = { gate = 2.0, ffn = 1.5 }"),
        "model.init_scale: found two factors of \"gate\", expected one"
    );
    for wrong in ["{ o = 0 }", "{ o = -1.0 }", "{ o = 1e30 }", "{ o = \"a\" }", "{ head = 2.0 }", "2.0", "{ o = nan }"] {
        let message = error(&format!("[model]\ninit_scale = {wrong}"));
        assert!(message.starts_with("test.toml: model.init_scale: found ") && message.contains("expected a table"), "{message}");
    }
}

#[test]
fn presets_give_sizes_and_keys_override_them() {
    let config = parse("[model]\npreset = \"60M\"\nlayers = 3", &[]).expect("a good file");
    let model = &config.model;
    assert_eq!((model.dim, model.layers, model.heads, model.kv_heads, model.intermediate_size), (512, 3, 8, 8, 1536));
    assert_eq!(parse(&config.to_toml(), &["model.preset=20M"]).map(|config| config.model.dim), Ok(256));
}

#[test]
fn the_published_hidden_sizes_follow_the_formula() {
    assert_eq!([256, 384, 512, 768, 1024, 2048].map(LlamaConfig::default_intermediate_size), [768, 1024, 1536, 2048, 2816, 5632]);
}

#[test]
fn an_unknown_key_names_its_section_and_the_nearest_key() {
    assert_eq!(
        error("[train]\nbatchsize = 4"),
        "test.toml: unknown key \"batchsize\" in [train]\nhint: did you mean train.batch_size?"
    );
    assert_eq!(error("sed = 4"), "test.toml: unknown key \"sed\" at the top level\nhint: did you mean seed?");
}

#[test]
fn an_unknown_section_names_the_nearest_one() {
    assert_eq!(error("[optimiser]\nlr = 1"), "test.toml: unknown section [optimiser]\nhint: did you mean [optimizer]?");
    assert_eq!(error("train = 3"), "test.toml: train: found 3, expected a section [train]");
}

#[test]
fn a_wrong_type_says_what_was_found_and_expected() {
    assert_eq!(error("[optimizer]\nlr = \"big\""), "test.toml: optimizer.lr: found \"big\", expected a number of at least 0");
    assert_eq!(error("[model]\ntied = 1"), "test.toml: model.tied: found 1, expected true or false");
    assert_eq!(
        error("[optimizer]\nbetas = [0.9]"),
        "test.toml: optimizer.betas: found [0.9], expected a list of 2 numbers, each from 0 to below 1"
    );
    let names = crate::config::optimizers::NAMES.join(", ");
    let found = error("[optimizer]\nkind = \"sgd\"");
    assert_eq!(found, format!("test.toml: optimizer.kind: found \"sgd\", expected one of {names}"));
}

#[test]
fn values_out_of_range_are_refused() {
    for text in [
        "seed = -1",
        "[model]\ndim = 0",
        "[model]\nnorm_eps = 0.0",
        "[model]\nvocab = 1",
        "[model]\nhead_dim = 7",
        "[model]\nhead_dim = 258",
        "[model]\ndim = 4096",
        "[model]\nrope_scaling = \"dynamic\"",
        "[model]\nrope_scaling = \"linear\"\nrope_factor = 0.5",
        "[pc]\nlevel = 5",
        "[pc]\ncoefficients = []",
        "[pc]\ncoefficients = [nan]",
        "[pc]\ntargets = [\"w1\"]",
        "[optimizer]\nlr = inf",
        "[optimizer]\nlr = -0.1",
        "[optimizer]\nmomentum = 1.0",
        "[schedule]\nend_ratio = 1.5",
        "[data]\nseq_len = 0",
        "[data]\ntrain = \"\"",
        "[train]\nsteps = 0",
        "[train]\nprecision = \"f64\"",
    ] {
        let message = error(text);
        assert!(message.contains(": found ") && message.contains(", expected "), "{text}: {message}");
    }
}

#[test]
fn keys_that_do_not_fit_together_are_refused() {
    assert!(error("[model]\ndim = 250").starts_with("model.dim: found 250, expected a multiple of 2·heads = 8"));
    assert_eq!(error("[model]\nkv_heads = 3"), "model.kv_heads: found 3, expected a divisor of heads = 4");
    assert_eq!(
        error("[schedule]\nkind = \"wsd\"\ndecay_steps = 2000"),
        "schedule.decay_steps: found 2000, expected at most train.steps = 1000"
    );
    assert_eq!(error("[pc]\nlevel = 1\ncoefficients = [1]"), "pc: found level and coefficients, expected one of them");
}

#[test]
fn heads_share_the_width_unless_theirs_is_given() {
    let head_dim = |sets: &[&str]| parse("[model]\ndim = 64\nheads = 4", sets).expect("a good file").model.head_dim;
    assert_eq!(head_dim(&[]), 16);
    assert_eq!(head_dim(&["model.head_dim=48"]), 48);
    // Heads of a given width need not divide dim.
    assert_eq!(head_dim(&["model.dim=60", "model.heads=8", "model.head_dim=10"]), 10);
    assert_eq!(head_dim(&["model.head_dim=48", "model.preset=20M"]), 64);
}

#[test]
fn rope_scaling_takes_its_own_keys() {
    let model = |text: &str, sets: &[&str]| parse(&format!("[model]\n{text}"), sets).map(|config| config.model);
    let yarn = model("rope_scaling = \"yarn\"\nrope_factor = 4\nrope_original_seq_len = 64", &[]).expect("a good file");
    assert_eq!((yarn.rope_beta_fast, yarn.rope_beta_slow), (Some(32.0), Some(1.0)));
    assert!((yarn.rope_attention_factor.expect("a default") - 1.138_629).abs() < 1e-6);
    let again = Config { model: yarn.clone(), ..Config::default() };
    assert_eq!(parse(&again.to_toml(), &[]).map(|config| config.model), Ok(yarn));
    let linear = model("rope_scaling = \"yarn\"\nrope_factor = 4", &["model.rope_scaling=linear", "model.rope_factor=2"]);
    assert_eq!(linear.expect("a good file").rope(), Some(polytape::llama::RopeScaling::Linear { factor: 2.0 }));
    let refused = |text: &str| model(text, &[]).expect_err("a bad file");
    let keys = "rope_scaling = \"llama3\"\nrope_factor = 32\nrope_low_freq_factor = 1\nrope_high_freq_factor = 4\nrope_original_seq_len = 8192";
    let table =
        "{ type = \"llama3\", factor = 32.0, low_freq_factor = 1.0, high_freq_factor = 4.0, original_max_seq_len = 8192 }";
    let llama3 = model(keys, &[]);
    assert!(llama3.as_ref().is_ok_and(|model| model.rope().is_some()), "{llama3:?}");
    assert_eq!(model(&format!("rope_scaling = {table}"), &[]), llama3);
    assert_eq!(model("rope_scaling = \"linear\"\nrope_factor = 4", &[&format!("model.rope_scaling={table}")]), llama3);
    assert!(
        refused("rope_scaling = { type = \"linear\", factro = 4 }").contains("found the entry factro, expected some of type,")
    );
    assert!(refused("rope_scaling = { factor = 4 }").contains("found a table without type"));
    assert!(
        refused("rope_factor = 2\nrope_scaling = { type = \"linear\", factor = 4 }")
            .contains("model.rope_factor: found a value here")
    );
    assert!(refused("rope_scaling = { type = \"linear\", factor = 0.5 }").contains("model.rope_factor: found 0.5"));
    assert_eq!(refused("rope_factor = 4"), "model.rope_factor: found 4, expected none where model.rope_scaling is \"none\"");
    assert_eq!(
        refused("rope_scaling = \"llama3\"\nrope_factor = 8"),
        "model.rope_original_seq_len: found none, expected one where model.rope_scaling is \"llama3\""
    );
    assert_eq!(
        refused("rope_scaling = \"llama3\"\nrope_factor = 8\nrope_original_seq_len = 64\nrope_low_freq_factor = 5"),
        "model.rope_high_freq_factor: found 4, expected more than rope_low_freq_factor = 5"
    );
}

#[test]
fn set_reads_every_type() {
    let sets = [
        "seed=7",
        "model.tied=true",
        "optimizer.lr = 1e-3",
        "optimizer.betas=[0.8, 0.9]",
        "optimizer.kind=muon",
        "optimizer.ns_coefficients=\"polar_express\"",
        "data.train=some/folder",
        "train.steps=12",
        "pc.targets=[\"qk\"]",
        "pc.coefficients=[1.5, -0.5]",
    ];
    let config = parse("[pc]\nlevel = 2", &sets).expect("good settings");
    assert_eq!((config.seed, config.model.tied, config.optimizer.lr), (7, true, 1e-3));
    assert_eq!((config.optimizer.betas, config.optimizer.kind.as_str()), ([0.8, 0.9], "muon"));
    assert_eq!((config.optimizer.ns_steps, config.train.steps), (8, 12));
    assert_eq!(config.data.train, "some/folder");
    let pc = config.pc.expect("a [pc] section");
    assert_eq!((pc.targets, pc.level, pc.coefficients), (vec![Target::Q, Target::K], None, Some(vec![1.5, -0.5])));
}

#[test]
fn set_errors_quote_the_setting() {
    let refused = |set: &str| parse("", &[set]).expect_err("a setting that must be refused");
    assert_eq!(refused("train.steps"), "--set train.steps: found no \"=\", expected section.key=value");
    assert_eq!(refused("train.step=3"), "--set train.step=3: unknown key \"step\" in [train]\nhint: did you mean train.steps?");
    assert_eq!(refused("trian.steps=3"), "--set trian.steps=3: unknown section [trian]\nhint: did you mean [train]?");
    assert_eq!(
        refused("train.steps=many"),
        "--set train.steps=many: train.steps: found \"many\", expected a whole number of at least 1"
    );
}

#[test]
fn bad_toml_names_the_line_in_one_sentence() {
    let message = error("seed = 1\n[train\n");
    assert!(message.starts_with("test.toml: line 2: ") && !message.contains('\n'), "{message}");
}

#[test]
fn a_missing_file_is_not_a_usage_error() {
    let failure = Config::load(Some(Path::new("no/such.toml")), &[]).expect_err("no such file");
    assert_eq!((failure.status, failure.to_string().as_str()), (1, "cannot read no/such.toml: no such file or folder"));
}

#[test]
fn the_vocabulary_comes_from_key_tokenizer_or_preset() {
    let vocab = |text: &str, tokenizer| parse(text, &[])?.resolve_vocab(tokenizer).map_err(|failure| failure.to_string());
    assert_eq!(vocab("[model]\nvocab = 500", Some(400)), Ok(500));
    assert_eq!(vocab("[model]\npreset = \"20M\"", Some(400)), Ok(400));
    assert_eq!(vocab("[model]\npreset = \"20M\"", None), Ok(32_000));
    assert_eq!(
        vocab("[model]\nvocab = 300", Some(400)),
        Err("model.vocab: found 300, expected at least the tokenizer's 400".to_owned())
    );
    assert_eq!(
        vocab("[data]\ntrain = \"d/train\"", None),
        Err("model.vocab is not set and data.train = \"d/train\" has no tokenizer.json beside it to take it from\nhint: `prepare` \
             writes one; or give the number of tokens: --set model.vocab=N"
            .to_owned())
    );
}
