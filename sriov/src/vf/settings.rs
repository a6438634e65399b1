//! What a PF sets for its VFs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::device_plan::mac_text;

/// Settings of a VF; what is `None` is unknown, or shall stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VfSettings {
    /// MAC address; zero where the PF leaves it to the VF.
    pub mac: Option<[u8; 6]>,
    /// The VLAN that its frames are put into and taken out of; 0 for none.
    pub vlan: Option<u16>,
    /// Frames from other MAC addresses are dropped by the NIC.
    pub spoof_check: Option<bool>,
    /// The VF may change its MAC address and hear everything.
    pub trust: Option<bool>,
    /// Its link.
    pub link_state: Option<LinkState>,
    /// Least rate that it is given when sending, Mbit/s; 0 for none.
    pub min_rate_mbps: Option<u32>,
    /// Largest rate at which it may send, Mbit/s; 0 for no limit.
    pub max_rate_mbps: Option<u32>,
}

/// The link that a VF sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// As the PF's.
    Auto,
    /// Up, whatever the PF's is.
    Enable,
    /// Down.
    Disable,
}

/// One setting, as the kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    Mac([u8; 6]),
    Vlan(u16),
    SpoofCheck(bool),
    Trust(bool),
    LinkState(LinkState),
    /// Both at once: the kernel knows them only together.
    Rate {
        min_mbps: u32,
        max_mbps: u32,
    },
}

impl VfSettings {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// One by one, in the order in which they are made. `now` gives the rate that is not set.
    pub(super) fn each(&self, now: &Self) -> Vec<Setting> {
        let rate = (self.min_rate_mbps.is_some() || self.max_rate_mbps.is_some()).then(|| Setting::Rate {
            min_mbps: self.min_rate_mbps.or(now.min_rate_mbps).unwrap_or(0),
            max_mbps: self.max_rate_mbps.or(now.max_rate_mbps).unwrap_or(0),
        });
        [
            // Trust first: some drivers take a MAC address of an untrusted VF only once.
            self.trust.map(Setting::Trust),
            self.mac.map(Setting::Mac),
            self.vlan.map(Setting::Vlan),
            self.spoof_check.map(Setting::SpoofCheck),
            self.link_state.map(Setting::LinkState),
            rate,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Those of `self` that `other` sets, where they differ.
    pub(super) fn changed_by(&self, other: &Self) -> Self {
        fn keep<T: PartialEq>(own: Option<T>, other: Option<T>) -> Option<T> {
            if other.is_some() && own != other { own } else { None }
        }
        Self {
            mac: keep(self.mac, other.mac),
            vlan: keep(self.vlan, other.vlan),
            spoof_check: keep(self.spoof_check, other.spoof_check),
            trust: keep(self.trust, other.trust),
            link_state: keep(self.link_state, other.link_state),
            min_rate_mbps: keep(self.min_rate_mbps, other.min_rate_mbps),
            max_rate_mbps: keep(self.max_rate_mbps, other.max_rate_mbps),
        }
    }

    /// `self`, and what only `other` has.
    pub(super) fn or(&self, other: &Self) -> Self {
        Self {
            mac: self.mac.or(other.mac),
            vlan: self.vlan.or(other.vlan),
            spoof_check: self.spoof_check.or(other.spoof_check),
            trust: self.trust.or(other.trust),
            link_state: self.link_state.or(other.link_state),
            min_rate_mbps: self.min_rate_mbps.or(other.min_rate_mbps),
            max_rate_mbps: self.max_rate_mbps.or(other.max_rate_mbps),
        }
    }
}

impl Setting {
    /// Whether a driver that does not know the setting does as it says anyway.
    pub(super) fn holds_where_unknown(&self) -> bool {
        matches!(
            self,
            Self::Vlan(0)
                | Self::SpoofCheck(false)
                | Self::Trust(false)
                | Self::LinkState(LinkState::Auto)
                | Self::Rate { min_mbps: 0, max_mbps: 0 }
        )
    }
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Enable => "enable",
            Self::Disable => "disable",
        })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: &bool| if *on { "on" } else { "off" };
        match self {
            Self::Mac(mac) => write!(f, "mac {}", mac_text(*mac)),
            Self::Vlan(id) => write!(f, "vlan {id}"),
            Self::SpoofCheck(on) => write!(f, "spoof check {}", switch(on)),
            Self::Trust(on) => write!(f, "trust {}", switch(on)),
            Self::LinkState(state) => write!(f, "link state {state}"),
            Self::Rate { min_mbps, max_mbps } => write!(f, "rates {min_mbps} to {max_mbps} Mbit/s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_change_replaces_is_what_must_be_restored() {
        let now = VfSettings { mac: Some([0; 6]), vlan: Some(0), trust: Some(true), ..VfSettings::default() };
        let change =
            VfSettings { mac: Some([2; 6]), trust: Some(true), vlan: Some(7), ..VfSettings::default() };
        let former = now.changed_by(&change);
        assert_eq!(former, VfSettings { mac: Some([0; 6]), vlan: Some(0), ..VfSettings::default() });
        let later = VfSettings { mac: Some([2; 6]), spoof_check: Some(true), ..VfSettings::default() };
        assert_eq!(former.or(&later).mac, Some([0; 6]), "the first is what was");
        assert_eq!(former.or(&later).spoof_check, Some(true));
    }

    #[test]
    fn a_rate_alone_leaves_the_other_as_it_is() {
        let now = VfSettings { min_rate_mbps: Some(10), max_rate_mbps: Some(100), ..VfSettings::default() };
        let change = VfSettings { max_rate_mbps: Some(500), ..VfSettings::default() };
        assert_eq!(change.each(&now), [Setting::Rate { min_mbps: 10, max_mbps: 500 }]);
        assert!(VfSettings::default().each(&now).is_empty());
    }
}
