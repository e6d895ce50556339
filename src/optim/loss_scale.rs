//! Dynamic loss scaling. In half precision small gradients vanish and large ones are infinite, so the backward begins with a power
//! of two that keeps them in between, and [`Clip`](super::Clip) divides by it again.

/// The factor of the loss: halved when a gradient overflows, which skips that step, and doubled after `interval` finite steps.
#[derive(Debug, Clone, PartialEq)]
pub struct LossScale {
    /// The factor of the next step.
    pub scale: f32,
    /// Finite steps in a row since it last changed.
    pub good_steps: u64,
    /// Number of finite steps after which it doubles.
    pub interval: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: 65_536.0, good_steps: 0, interval: 2000 }
    }
}

impl LossScale {
    /// Beyond this nothing is gained: squared gradients approach the limit of f32.
    const MAX: f32 = 16_777_216.0;

    /// Adjusts the scale to a step's loss and gradient norm; true when the gradients overflowed, so that the step must be skipped.
    ///
    /// No scale helps a loss that is not finite, nor a norm that is not finite at a scale of 1: both return false.
    pub fn update(&mut self, loss: f32, norm: f32) -> bool {
        if norm.is_finite() {
            self.good_steps += 1;
            if self.good_steps >= self.interval {
                self.good_steps = 0;
                self.scale = (2.0 * self.scale).min(Self::MAX);
            }
            return false;
        }
        let overflowed = loss.is_finite() && self.scale > 1.0;
        if overflowed {
            self.good_steps = 0;
            self.scale = (0.5 * self.scale).max(1.0);
        }
        overflowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_after_an_interval_of_finite_steps_and_halves_after_an_overflow() {
        let mut scale = LossScale { interval: 3, ..LossScale::default() };
        assert!((0..2).all(|_| !scale.update(4.0, 1.0)));
        assert!(scale.update(4.0, f32::INFINITY) && scale.update(4.0, f32::NAN));
        assert_eq!(scale, LossScale { scale: 16_384.0, good_steps: 0, interval: 3 });
        let scales = [(); 7].map(|()| {
            assert!(!scale.update(4.0, 1e30));
            scale.scale
        });
        assert_eq!(scales, [16_384.0, 16_384.0, 32_768.0, 32_768.0, 32_768.0, 65_536.0, 65_536.0]);
    }

    #[test]
    fn it_stays_between_1_and_the_maximum() {
        let mut scale = LossScale { interval: 1, ..LossScale::default() };
        assert!((0..100).all(|_| !scale.update(4.0, 1.0)));
        assert_eq!(scale.scale, LossScale::MAX);
        assert!((0..24).all(|_| scale.update(4.0, f32::NAN)));
        assert_eq!(scale.scale, 1.0);
        assert!(!scale.update(4.0, f32::NAN), "what is not finite unscaled is an error of the caller's");
    }

    #[test]
    fn no_scale_helps_a_loss_that_is_not_finite() {
        let mut scale = LossScale::default();
        assert!(!scale.update(f32::INFINITY, f32::NAN));
        assert_eq!(scale, LossScale::default());
    }
}
