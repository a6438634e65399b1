//! Steps back, for a change that fails half-way.

use super::error::VfError;

/// One step back; the words say what is still changed if it fails.
type Step<'a> = (String, Box<dyn FnOnce() -> Result<(), VfError> + 'a>);

/// What is to be done, last first, if the rest of a change fails.
#[derive(Default)]
pub(super) struct Undo<'a> {
    steps: Vec<Step<'a>>,
}

impl<'a> Undo<'a> {
    pub(super) fn push(&mut self, what: String, step: impl FnOnce() -> Result<(), VfError> + 'a) {
        self.steps.push((what, Box::new(step)));
    }

    /// Goes back, and gives the reason for it; with what could not be undone.
    pub(super) fn after(self, cause: VfError) -> VfError {
        let mut left = Vec::new();
        for (what, step) in self.steps.into_iter().rev() {
            if let Err(error) = step() {
                left.push(format!("{what}: {error}"));
            }
        }
        if left.is_empty() {
            return cause;
        }
        VfError::HalfUndone { cause: Box::new(cause), left: left.join("; ") }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn steps_are_undone_last_first_and_failures_are_told() {
        let done = RefCell::new(Vec::new());
        let no = || VfError::NotOurs { object: "function x".into() };
        let mut undo = Undo::default();
        for number in 1..=3 {
            let done = &done;
            undo.push(format!("step {number}"), move || {
                done.borrow_mut().push(number);
                if number == 2 { Err(no()) } else { Ok(()) }
            });
        }
        let error = undo.after(VfError::NoSriov { pf: "ens1".into() }).to_string();
        assert_eq!(*done.borrow(), [3, 2, 1]);
        assert!(error.contains("PF ens1: has no SR-IOV") && error.contains("step 2: function x"), "{error}");
        let cause = Undo::default().after(no()).to_string();
        assert_eq!(cause, no().to_string());
    }
}
