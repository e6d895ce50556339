//! Dynamic loss scaling. In half precision small gradients vanish and large ones are infinite, so the backward begins with a power
//! of two that keeps them in between, and [`Clip`](super::Clip) divides by it again.

/// The factor of the loss: halved when a gradient was not finite, which leaves that step out, and doubled when all have been
/// for long.
#[derive(Debug, Clone, PartialEq)]
pub struct LossScale {
    /// The factor of the next step.
    pub scale: f32,
    /// Finite steps in a row since it last changed.
    pub good_steps: u64,
    /// After so many of them it is doubled.
    pub interval: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: 65_536.0, good_steps: 0, interval: 2000 }
    }
}

impl LossScale {
    /// Above this nothing is gained: the gradients' squares come near to the end of f32.
    const MOST: f32 = 16_777_216.0;

    /// Takes note of a step's loss and gradient norm, and says whether to leave the step out because its gradients overflowed.
    ///
    /// A loss that is not finite, and a norm that is not with a factor of 1, are no matter of scale: they are the caller's.
    pub fn overflows(&mut self, loss: f32, norm: f32) -> bool {
        if norm.is_finite() {
            self.good_steps += 1;
            if self.good_steps >= self.interval {
                self.good_steps = 0;
                self.scale = (2.0 * self.scale).min(Self::MOST);
            }
            return false;
        }
        let overflows = loss.is_finite() && self.scale > 1.0;
        if overflows {
            self.good_steps = 0;
            self.scale = (0.5 * self.scale).max(1.0);
        }
        overflows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_after_so_many_finite_steps_in_a_row_and_halves_after_any_other() {
        let mut scale = LossScale { interval: 3, ..LossScale::default() };
        assert!((0..2).all(|_| !scale.overflows(4.0, 1.0)));
        assert!(scale.overflows(4.0, f32::INFINITY) && scale.overflows(4.0, f32::NAN));
        assert_eq!(scale, LossScale { scale: 16_384.0, good_steps: 0, interval: 3 });
        let scales = [(); 7].map(|()| {
            assert!(!scale.overflows(4.0, 1e30));
            scale.scale
        });
        assert_eq!(scales, [16_384.0, 16_384.0, 32_768.0, 32_768.0, 32_768.0, 65_536.0, 65_536.0]);
    }

    #[test]
    fn it_stays_between_one_and_the_most() {
        let mut scale = LossScale { interval: 1, ..LossScale::default() };
        assert!((0..100).all(|_| !scale.overflows(4.0, 1.0)));
        assert_eq!(scale.scale, LossScale::MOST);
        assert!((0..24).all(|_| scale.overflows(4.0, f32::NAN)));
        assert_eq!(scale.scale, 1.0);
        assert!(!scale.overflows(4.0, f32::NAN), "what is not finite unscaled is an error of the caller's");
    }

    #[test]
    fn no_scale_helps_a_loss_that_is_not_finite() {
        let mut scale = LossScale::default();
        assert!(!scale.overflows(f32::INFINITY, f32::NAN));
        assert_eq!(scale, LossScale::default());
    }
}
