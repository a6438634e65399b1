//! What a command is about: `PF/INDEX`, a PCI address, or a PF by the name of its interface.

use std::fmt;
use std::str::FromStr;

use crate::device_spec::{interface, pci_address};

/// The most VFs that a PF can have (PCIe: `TotalVFs` has 16 bits).
const MOST_VFS: u32 = u16::MAX as u32;

/// Names one function, or a PF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A VF by its number on its PF: `ens1f0/3`, `0000:3b:00.0/3`.
    Vf {
        /// The PF's interface or PCI address.
        pf: String,
        /// The VF's number, from 0.
        index: u32,
    },
    /// A function by its PCI address, in full and lower case.
    Address(String),
    /// A PF by the name of its interface.
    Interface(String),
}

/// Words that name no function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?}: {reason} (write PF/INDEX such as ens1f0/3, an address such as 0000:3b:02.1, or the PF's interface)"
)]
pub struct TargetError {
    /// What was written.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(value: &str) -> Result<Self, TargetError> {
        let error = |reason: String| TargetError { value: value.to_owned(), reason };
        match value.rsplit_once('/') {
            Some((pf, index)) => {
                let (pf, index) = vf(pf, index).map_err(error)?;
                Ok(Self::Vf { pf, index })
            }
            None => match pci_address(value) {
                Ok(address) => Ok(Self::Address(address)),
                Err(_) => interface(value).map(Self::Interface).map_err(error),
            },
        }
    }
}

/// A PF and the number of one of its VFs, as text; gives the PF's address in full.
pub(crate) fn vf(pf: &str, index: &str) -> Result<(String, u32), String> {
    let pf = pci_address(pf).or_else(|_| interface(pf))?;
    let digits = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    match index.parse::<u32>() {
        Ok(number) if digits && number < MOST_VFS => Ok((pf, number)),
        _ => Err(format!("{index:?} is not the number of a VF (0 to {})", MOST_VFS - 1)),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vf { pf, index } => write!(f, "{pf}/{index}"),
            Self::Address(address) => f.write_str(address),
            Self::Interface(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_told_apart() {
        let of = |text: &str| text.parse::<Target>().unwrap();
        assert_eq!(of("ens1f0/3"), Target::Vf { pf: "ens1f0".into(), index: 3 });
        assert_eq!(of("3B:00.0/0"), Target::Vf { pf: "0000:3b:00.0".into(), index: 0 });
        assert_eq!(of("3b:02.1"), Target::Address("0000:3b:02.1".into()));
        assert_eq!(of("ens1f0"), Target::Interface("ens1f0".into()));
        for (text, part) in [
            ("ens1f0/", "number of a VF"),
            ("ens1f0/+1", "number of a VF"),
            ("/1", "interface"),
            ("", "interface"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("PF/INDEX"), "{text}: {error}");
        }
        assert!("ens1f0/65535".parse::<Target>().is_err() && "ens1f0/65534".parse::<Target>().is_ok());
    }
}
