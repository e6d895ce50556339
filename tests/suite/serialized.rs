//! Configurations through JSON, with the feature `serde`.

use std::fmt::Debug;

use polytape::Precision;
use polytape::llama::{LlamaConfig, RopeScaling};
use polytape::optim::{AdamConfig, LrDecay, LrScale, MuonConfig, Schedule, ScheduleKind, WeightDecayScope};
use polytape::spectral::{NewtonSchulz, Norm, PcConfig};
use serde::{Serialize, de::DeserializeOwned};

/// Its JSON, from which the same value is read.
#[track_caller]
fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) -> String {
    let text = serde_json::to_string(&value).expect("it is serialized");
    assert_eq!(serde_json::from_str::<T>(&text).expect("it is read"), value);
    text
}

#[test]
fn configurations_survive_a_round_trip() {
    let adam = AdamConfig { betas: [0.9, 0.999], weight_decay_scope: WeightDecayScope::Matrices, ..Default::default() };
    assert!(json(adam).contains(r#""weight_decay_scope":"matrices""#));
    let coefficients = NewtonSchulz::PolarExpress;
    let muon =
        MuonConfig { coefficients, newton_schulz_steps: Some(6), lr_scale: LrScale::SpectralMup, adam, ..Default::default() };
    assert!(json(muon).contains(r#""coefficients":"polar_express","newton_schulz_steps":6,"lr_scale":"spectral_mup""#));
    json(PcConfig { norm: Norm::Frobenius, recover_norm: false, ..Default::default() });
    json(Schedule { kind: ScheduleKind::Wsd, total_steps: 100, decay_steps: 20, decay: LrDecay::Sqrt, ..Default::default() });
    let scalings = [
        RopeScaling::Linear { factor: 4.0 },
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_seq_len: 8192 },
        RopeScaling::Yarn { factor: 4.0, beta_fast: 32.0, beta_slow: 1.0, original_seq_len: 4096, attention_factor: 1.14 },
    ];
    json(LlamaConfig::new(256, 4, 4, 500));
    for scaling in scalings {
        json(LlamaConfig { head_dim: Some(32), rope_scaling: Some(scaling), qk_norm: true, ..LlamaConfig::new(256, 4, 4, 500) });
    }
    for precision in Precision::ALL {
        assert_eq!(json(precision), format!("\"{precision}\""));
    }
}
