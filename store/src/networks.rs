//! Networks that containers share: what they are called, which addresses belong to them, and who has which.
//!
//! ```text
//! networks/<name>.json         a network, written whole
//! networks/<name>/<address>    locked by whoever has the address; what it holds says who that is
//! ```
//!
//! An address is free again when its process ends, whatever ends it: see [`crate::fs::Lock`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::fs::{self, FsError, Lock, Shared, attempt};
use crate::oci::time::rfc3339;
use crate::{Store, StoreError};

/// The longest file that describes a network or a member.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Most addresses of a subnet that are tried for a free one.
const TRIES_MAX: u128 = 1 << 16;

/// Why a network cannot be made, found or joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// No such network.
    #[error("no network `{name}` here")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// A network of this name is there.
    #[error("there is a network `{name}` already")]
    Exists {
        /// Its name.
        name: String,
    },
    /// Not a name.
    #[error(
        "`{name}` is no name of a network: letters, digits, `_`, `.` and `-`, beginning with a letter or a digit, at most 128"
    )]
    BadName {
        /// What was given.
        name: String,
    },
    /// Its addresses overlap another network's.
    #[error("`{subnet}` overlaps `{other}` of network `{network}`")]
    Overlaps {
        /// What was asked for.
        subnet: NetworkSubnet,
        /// What is there.
        other: NetworkSubnet,
        /// Whose that is.
        network: String,
    },
    /// A subnet that cannot be one.
    #[error("`{subnet}` is no subnet for containers: {reason}")]
    BadSubnet {
        /// What was given.
        subnet: NetworkSubnet,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Somebody has the address.
    #[error("address `{address}` of network `{network}` is in use by {holder}")]
    InUse {
        /// The address.
        address: IpAddr,
        /// The network.
        network: String,
        /// Who has it.
        holder: String,
    },
    /// An address that does not belong to the network.
    #[error("`{address}` is no address of network `{network}`")]
    NotMember {
        /// The address.
        address: IpAddr,
        /// The network.
        network: String,
    },
    /// No address is left.
    #[error("network `{network}` has no address left in `{subnet}`")]
    Full {
        /// The network.
        network: String,
        /// Where none is left.
        subnet: NetworkSubnet,
    },
    /// Containers are in it.
    #[error("network `{network}` is in use by {members}")]
    HasMembers {
        /// The network.
        network: String,
        /// Who.
        members: String,
    },
    /// A file that no longshore wrote.
    #[error("`{}` does not describe a network: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<FsError> for NetworkError {
    fn from(error: FsError) -> NetworkError {
        NetworkError::Store(error.into())
    }
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// 64 hexadecimal digits, made up when it was made.
    pub id: String,
    /// When it was made (RFC 3339).
    pub created: String,
    /// Its subnets, at least one.
    pub subnets: Vec<NetworkSubnet>,
    /// Whether nothing leads out of it.
    #[serde(default)]
    pub internal: bool,
    /// For people.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Addresses of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSubnet {
    /// Its first address.
    pub first: IpAddr,
    /// How many leading bits its addresses share.
    pub prefix: u8,
    /// The address of its way out.
    pub gateway: IpAddr,
}

impl std::fmt::Display for NetworkSubnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// Who has an address, as the others are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkMember {
    /// The container's id; empty for a step of a build.
    pub id: String,
    /// The names that the others find it by.
    pub names: Vec<String>,
    /// Its address in each subnet, in their order.
    pub addresses: Vec<IpAddr>,
}

/// A place in a network, until it is dropped or its process ends.
#[derive(Debug)]
pub struct NetworkPlace {
    /// The network.
    pub network: NetworkInfo,
    /// An address in each of its subnets, in their order.
    pub addresses: Vec<IpAddr>,
    _locks: Vec<Lock>,
}

impl NetworkPlace {
    /// Gives the place to whoever holds what is returned, which may be sent to another process.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn hand_over(self) -> Result<Vec<OwnedFd>, NetworkError> {
        let handed = self._locks.into_iter().map(Lock::hand_over);
        Ok(handed.collect::<Result<_, _>>()?)
    }
}

impl NetworkSubnet {
    /// The subnet that `address` lies in, with its first address but one as the gateway.
    pub fn around(address: IpAddr, prefix: u8) -> NetworkSubnet {
        let first = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32)));
                IpAddr::V4((address.to_bits() & mask.unwrap_or(0)).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128)));
                IpAddr::V6((address.to_bits() & mask.unwrap_or(0)).into())
            }
        };
        NetworkSubnet {
            first,
            prefix,
            gateway: plus(first, 1),
        }
    }

    /// Whether `address` is one of its.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4()
            && NetworkSubnet::around(address, self.prefix).first == self.first
    }

    fn overlaps(&self, other: &NetworkSubnet) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// How many addresses it has.
    fn size(&self) -> u128 {
        let bits = if self.first.is_ipv4() { 32 } else { 128 };
        let free = u32::from(u8::checked_sub(bits, self.prefix).unwrap_or(0));
        1_u128.checked_shl(free).unwrap_or(u128::MAX)
    }

    fn check(&self) -> Result<(), NetworkError> {
        let bits = if self.first.is_ipv4() { 32 } else { 128 };
        let reason = if self.prefix == 0 || self.prefix > bits {
            "its prefix is not one"
        } else if self.size() < 4 {
            "it has no two addresses besides the first and the last"
        } else if NetworkSubnet::around(self.first, self.prefix).first != self.first {
            "it has bits set behind its prefix"
        } else if !self.contains(self.gateway) || self.gateway == self.first {
            "its gateway is not in it"
        } else {
            return Ok(());
        };
        Err(NetworkError::BadSubnet {
            subnet: *self,
            reason,
        })
    }
}

fn plus(address: IpAddr, offset: u128) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            IpAddr::V4(address.to_bits().wrapping_add(offset).into())
        }
        IpAddr::V6(address) => IpAddr::V6(address.to_bits().wrapping_add(offset).into()),
    }
}

impl Store {
    /// Makes a network. `subnets` chooses its subnets, given those that other networks have, while nobody else makes one.
    ///
    /// # Errors
    /// The name is none or is taken, or what was chosen overlaps another network; and what `subnets` fails with.
    pub fn create_network<E: From<NetworkError>>(
        &self,
        name: &str,
        internal: bool,
        labels: BTreeMap<String, String>,
        subnets: impl FnOnce(&[NetworkSubnet]) -> Result<Vec<NetworkSubnet>, E>,
    ) -> Result<NetworkInfo, E> {
        check_name(name)?;
        let folder = self.networks_path();
        fs::create_dir(&folder).map_err(NetworkError::from)?;
        let _alone = Shared::lock_alone(&folder.join(".lock")).map_err(NetworkError::from)?;
        let others = self.networks()?;
        if others.iter().any(|other| other.name == name) {
            let name = name.to_owned();
            return Err(NetworkError::Exists { name }.into());
        }
        let taken: Vec<NetworkSubnet> = others.iter().flat_map(|n| n.subnets.clone()).collect();
        let subnets = subnets(&taken)?;
        for subnet in &subnets {
            subnet.check()?;
            for other in &others {
                let found = other.subnets.iter().find(|other| other.overlaps(subnet));
                if let Some(&found) = found {
                    let (subnet, network) = (*subnet, other.name.clone());
                    let other = found;
                    return Err(NetworkError::Overlaps {
                        subnet,
                        other,
                        network,
                    }
                    .into());
                }
            }
        }
        let network = NetworkInfo {
            name: name.to_owned(),
            id: fresh_id().map_err(NetworkError::from)?,
            created: rfc3339(self.clock().now_micros() / 1_000_000),
            subnets,
            internal,
            labels,
        };
        let text = serde_json::to_vec_pretty(&network).expect("its keys are texts");
        let path = self.network_path(name);
        fs::write_atomic(&self.root.join("tmp"), &path, &text).map_err(NetworkError::from)?;
        Ok(network)
    }

    /// All networks that were made, by name.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn networks(&self) -> Result<Vec<NetworkInfo>, NetworkError> {
        let mut found = Vec::new();
        for file in fs::list(&self.networks_path())? {
            let Some(name) = file.strip_suffix(".json") else {
                continue;
            };
            found.extend(self.read_network(name)?);
        }
        found.sort_by(|a: &NetworkInfo, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// A network by its name, its id, or a beginning of its id that no other has.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn network(&self, name: &str) -> Result<NetworkInfo, NetworkError> {
        if check_name(name).is_ok()
            && let Some(network) = self.read_network(name)?
        {
            return Ok(network);
        }
        let mut found = self.networks()?.into_iter();
        let mut by_id = found
            .by_ref()
            .filter(|network| !name.is_empty() && network.id.starts_with(name));
        match (by_id.next(), by_id.next()) {
            (Some(network), None) => Ok(network),
            _ => Err(NetworkError::Unknown {
                name: name.to_owned(),
            }),
        }
    }

    /// Who is in a network, by address.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn network_members(&self, name: &str) -> Result<Vec<NetworkMember>, NetworkError> {
        fs::create_dir(&self.networks_path())?;
        let _joining = Shared::lock(&self.networks_path().join(".lock"))?;
        self.members(name)
    }

    /// To be called with the lock held: who looks whether an address is free holds it for a moment.
    fn members(&self, name: &str) -> Result<Vec<NetworkMember>, NetworkError> {
        let folder = self.members_path(name);
        let mut members: Vec<NetworkMember> = Vec::new();
        for file in fs::list(&folder)? {
            let path = folder.join(&file);
            if file.parse::<IpAddr>().is_err() || fs::temp::is_stale(&path)? {
                continue;
            }
            let text = fs::optional(fs::read(&path, FILE_BYTES_MAX))?.unwrap_or_default();
            // Empty for a moment, until its holder has said who it is.
            let Ok(member) = serde_json::from_slice::<NetworkMember>(&text) else {
                continue;
            };
            if !members.contains(&member) {
                members.push(member);
            }
        }
        members.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        Ok(members)
    }

    /// Takes an address in each subnet of a network: those `wanted`, or the lowest that are free.
    ///
    /// # Errors
    /// There is no such network, an address wanted is in use or is none of its, or none is left.
    pub fn join_network(
        &self,
        name: &str,
        mut member: NetworkMember,
        wanted: &[IpAddr],
    ) -> Result<NetworkPlace, NetworkError> {
        let network = self.network(name)?;
        let folder = self.members_path(&network.name);
        fs::create_dir(&folder)?;
        // Nobody removes the network, or looks whether an address is free, meanwhile.
        let _alone = Shared::lock_alone(&self.networks_path().join(".lock"))?;
        let network = self.network(&network.name)?;
        let is_ours = |address: &&IpAddr| !network.subnets.iter().any(|s| s.contains(**address));
        if let Some(&address) = wanted.iter().find(is_ours) {
            let network = network.name;
            return Err(NetworkError::NotMember { address, network });
        }
        let (mut addresses, mut locks) = (Vec::new(), Vec::new());
        for subnet in &network.subnets {
            let wish = wanted.iter().find(|address| subnet.contains(**address));
            let candidates: Box<dyn Iterator<Item = IpAddr>> = match wish {
                Some(&address) => Box::new(std::iter::once(address)),
                // Neither the first, which is the network's own name, nor the last, which is everybody.
                None => {
                    let last = (subnet.size() - 1).min(TRIES_MAX);
                    Box::new((1..last).map(|offset| plus(subnet.first, offset)))
                }
            };
            let mut taken = None;
            for address in candidates.filter(|address| *address != subnet.gateway) {
                let path = folder.join(address.to_string());
                if let Some(lock) = Lock::try_exclusive(&path)? {
                    taken = Some((address, lock));
                    break;
                }
            }
            let Some((address, lock)) = taken else {
                return Err(self.no_address(&network, subnet, wish.copied())?);
            };
            addresses.push(address);
            locks.push(lock);
        }
        member.addresses.clone_from(&addresses);
        let text = serde_json::to_vec(&member).expect("its keys are texts");
        for lock in &locks {
            lock.write(&text)?;
        }
        Ok(NetworkPlace {
            network,
            addresses,
            _locks: locks,
        })
    }

    fn no_address(
        &self,
        network: &NetworkInfo,
        subnet: &NetworkSubnet,
        wish: Option<IpAddr>,
    ) -> Result<NetworkError, NetworkError> {
        let Some(address) = wish else {
            return Ok(NetworkError::Full {
                network: network.name.clone(),
                subnet: *subnet,
            });
        };
        let members = self.members(&network.name)?;
        let holder = members.iter().find(|m| m.addresses.contains(&address));
        let holder = match holder {
            Some(member) => called(member),
            None if address == subnet.gateway => "its gateway".to_owned(),
            None => "another container".to_owned(),
        };
        Ok(NetworkError::InUse {
            address,
            network: network.name.clone(),
            holder,
        })
    }

    /// Removes a network that nobody is in. `last` takes down what else there is of it, while nobody can join.
    ///
    /// # Errors
    /// There is no such network, or somebody is in it; and what `last` fails with.
    pub fn remove_network<E: From<NetworkError>>(
        &self,
        name: &str,
        last: impl FnOnce(&NetworkInfo) -> Result<(), E>,
    ) -> Result<NetworkInfo, E> {
        let network = self.network(name)?;
        let lock = self.networks_path().join(".lock");
        let _alone = Shared::lock_alone(&lock).map_err(NetworkError::from)?;
        let network = self.network(&network.name)?;
        let members = self.members(&network.name)?;
        if !members.is_empty() {
            let members: Vec<String> = members.iter().map(called).collect();
            return Err(NetworkError::HasMembers {
                network: network.name,
                members: members.join(", "),
            }
            .into());
        }
        last(&network)?;
        fs::remove_file(&self.network_path(&network.name)).map_err(NetworkError::from)?;
        let folder = self.members_path(&network.name);
        fs::temp::sweep(&folder).map_err(NetworkError::from)?;
        Ok(network)
    }

    fn read_network(&self, name: &str) -> Result<Option<NetworkInfo>, NetworkError> {
        let path = self.network_path(name);
        let Some(text) = fs::optional(fs::read(&path, FILE_BYTES_MAX))? else {
            return Ok(None);
        };
        let damaged = |reason: String| NetworkError::Damaged {
            path: path.clone(),
            reason,
        };
        let network: NetworkInfo =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if network.name != name {
            return Err(damaged(format!("it is called `{}` inside", network.name)));
        }
        if !is_id(&network.id) || network.subnets.is_empty() {
            return Err(damaged("it has no id, or no subnet".to_owned()));
        }
        for subnet in &network.subnets {
            subnet.check()?;
        }
        Ok(Some(network))
    }

    fn networks_path(&self) -> PathBuf {
        self.root.join("networks")
    }

    fn network_path(&self, name: &str) -> PathBuf {
        self.networks_path().join(format!("{name}.json"))
    }

    fn members_path(&self, name: &str) -> PathBuf {
        self.networks_path().join(name)
    }
}

fn called(member: &NetworkMember) -> String {
    match (member.names.first(), &member.id) {
        (Some(name), _) => format!("`{name}`"),
        (None, id) if id.is_empty() => "a build".to_owned(),
        (None, id) => format!("`{id}`"),
    }
}

/// Docker's rule. No name of a file that means anything but itself is one.
fn check_name(name: &str) -> Result<(), NetworkError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let begins = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    if begins && name.len() <= 128 && name.bytes().all(plain) && !name.ends_with(".json") {
        return Ok(());
    }
    Err(NetworkError::BadName {
        name: name.chars().take(200).collect(),
    })
}

fn is_id(id: &str) -> bool {
    id.len() == 64
        && id
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn fresh_id() -> Result<String, FsError> {
    let mut bytes = [0; 32];
    attempt("make", std::path::Path::new("an id"), || {
        let random = SystemRandom::new().fill(&mut bytes);
        random.map_err(|_| std::io::Error::other("no random bytes to be had"))
    })?;
    Ok(blake3::Hash::from_bytes(bytes).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::store;

    fn subnet(text: &str) -> NetworkSubnet {
        let (address, prefix) = text.split_once('/').unwrap();
        NetworkSubnet::around(address.parse().unwrap(), prefix.parse().unwrap())
    }

    fn make(store: &Store, name: &str, subnets: &[&str]) -> Result<NetworkInfo, NetworkError> {
        let subnets = subnets.iter().map(|text| subnet(text)).collect();
        store.create_network(name, false, BTreeMap::new(), |_| Ok(subnets))
    }

    fn member(name: &str) -> NetworkMember {
        NetworkMember {
            names: vec![name.to_owned()],
            ..NetworkMember::default()
        }
    }

    fn text<T: std::fmt::Debug>(result: Result<T, NetworkError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn subnets_around_addresses() {
        let check = |given: &str, expect: &str, gateway: &str| {
            let found = subnet(given);
            assert_eq!(found.to_string(), expect);
            assert_eq!(found.gateway.to_string(), gateway);
        };
        check("10.1.2.3/24", "10.1.2.0/24", "10.1.2.1");
        check("10.1.2.3/8", "10.0.0.0/8", "10.0.0.1");
        check("10.1.2.3/30", "10.1.2.0/30", "10.1.2.1");
        check("fd00::77/64", "fd00::/64", "fd00::1");
        for bad in [
            "10.0.0.0/0",
            "10.0.0.0/31",
            "10.0.0.0/32",
            "10.0.0.0/33",
            "fd00::/127",
        ] {
            assert!(subnet(bad).check().is_err(), "{bad}");
        }
        for (a, b, expect) in [
            ("10.1.0.0/16", "10.1.2.0/24", true),
            ("10.1.2.0/24", "10.1.0.0/16", true),
            ("10.1.2.0/24", "10.1.3.0/24", false),
            ("10.1.2.0/24", "fd00::/64", false),
        ] {
            assert_eq!(subnet(a).overlaps(&subnet(b)), expect, "{a} {b}");
        }
    }

    #[test]
    fn networks_are_made_found_and_removed() {
        let (_dir, store) = store();
        assert_eq!(store.networks().unwrap(), []);
        let red = make(&store, "red", &["10.1.0.0/24", "fd00::/64"]).unwrap();
        let blue = make(&store, "blue", &["10.2.0.0/24"]).unwrap();
        assert_eq!(store.networks().unwrap(), [blue.clone(), red.clone()]);
        for name in ["red", &red.id, &red.id[..12]] {
            assert_eq!(store.network(name).unwrap(), red);
        }
        assert_eq!(text(store.network("green")), "no network `green` here");
        assert_eq!(text(store.network("")), "no network `` here");
        assert_eq!(
            text(make(&store, "red", &["10.3.0.0/24"])),
            "there is a network `red` already"
        );
        assert_eq!(
            text(make(&store, "other", &["10.1.0.128/25"])),
            "`10.1.0.128/25` overlaps `10.1.0.0/24` of network `red`"
        );
        for name in ["", "-a", "a/b", "..", "a b", "red.json"] {
            assert!(
                text(make(&store, name, &[])).contains("is no name of a network"),
                "{name}"
            );
        }
        let removed = store
            .remove_network("red", |_| Ok::<(), NetworkError>(()))
            .unwrap();
        assert_eq!(removed, red);
        assert_eq!(store.networks().unwrap(), [blue]);
    }

    #[test]
    fn addresses_are_taken_and_given_back() {
        let (_dir, store) = store();
        make(&store, "red", &["10.1.0.0/29", "fd00::/64"]).unwrap();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = store.join_network("red", member("one"), &[]).unwrap();
        assert_eq!(first.addresses, [address("10.1.0.2"), address("fd00::2")]);
        let wanted = store
            .join_network("red", member("two"), &[address("10.1.0.5")])
            .unwrap();
        assert_eq!(wanted.addresses, [address("10.1.0.5"), address("fd00::3")]);
        let names: Vec<String> = store
            .network_members("red")
            .unwrap()
            .into_iter()
            .flat_map(|member| member.names)
            .collect();
        assert_eq!(names, ["one", "two"]);

        let refused = |wish: &str| text(store.join_network("red", member("x"), &[address(wish)]));
        assert_eq!(
            refused("10.1.0.5"),
            "address `10.1.0.5` of network `red` is in use by `two`"
        );
        assert_eq!(
            refused("10.1.0.1"),
            "address `10.1.0.1` of network `red` is in use by its gateway"
        );
        assert_eq!(
            refused("10.2.0.1"),
            "`10.2.0.1` is no address of network `red`"
        );
        let in_use = store.remove_network("red", |_| Ok::<(), NetworkError>(()));
        assert_eq!(text(in_use), "network `red` is in use by `one`, `two`");

        let rest: Vec<NetworkPlace> = (0..3)
            .map(|_| store.join_network("red", member("x"), &[]).unwrap())
            .collect();
        assert_eq!(
            text(store.join_network("red", member("x"), &[])),
            "network `red` has no address left in `10.1.0.0/29`"
        );
        drop((first, rest));
        let again = store.join_network("red", member("three"), &[]).unwrap();
        assert_eq!(again.addresses[0], address("10.1.0.2"));
        drop((again, wanted));
        store
            .remove_network("red", |_| Ok::<(), NetworkError>(()))
            .unwrap();
    }

    #[test]
    fn an_address_of_a_dead_process_is_free() {
        let (_dir, store) = store();
        make(&store, "red", &["10.1.0.0/29"]).unwrap();
        let folder = store.members_path("red");
        fs::create_dir(&folder).unwrap();
        let left = serde_json::to_vec(&member("dead")).unwrap();
        std::fs::write(folder.join("10.1.0.2"), left).unwrap();
        assert_eq!(store.network_members("red").unwrap(), []);
        let place = store.join_network("red", member("one"), &[]).unwrap();
        assert_eq!(place.addresses[0].to_string(), "10.1.0.2");
        assert_eq!(store.network_members("red").unwrap()[0].names, ["one"]);
    }

    #[test]
    fn what_no_longshore_wrote_is_refused() {
        let (_dir, store) = store();
        let red = make(&store, "red", &["10.1.0.0/24"]).unwrap();
        let path = store.network_path("red");
        let whole = std::fs::read_to_string(&path).unwrap();
        for (from, to, expect) in [
            ("\"red\"", "\"blue\"", "called `blue` inside"),
            (&red.id[..], "0", "no id"),
            ("10.1.0.1", "10.2.0.1", "its gateway is not in it"),
            ("{", "", "does not describe a network"),
        ] {
            std::fs::write(&path, whole.replacen(from, to, 1)).unwrap();
            let said = text(store.network("red"));
            assert!(said.contains(expect), "{said}");
        }
    }
}
