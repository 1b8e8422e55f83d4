//! The packet filter of a network: who may send what through its bridge; and the way to a sandbox's name server.
//!
//! A table of its own for each bridge, in nf_tables and whole in one transaction:
//!
//! ```text
//!  table inet longshore-BRIDGE
//!    chain postrouting (nat, source)     from a subnet, out by another interface: masquerade
//!    chain forward (filter)              into the bridge from elsewhere: only what answers
//!                                        out of it into another bridge of ours: drop
//!                                        an internal network: nothing in or out
//! ```
//!
//! Lines have one like it for each process that has an [`super::line::Outlet`], which the kernel removes when that ends.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::netlink::{CREATE, Message, Netlink, attributes};
use super::{BRIDGE_PREFIX, Bridge, Subnet};

/// Types of messages: nf_tables' own have its number in their upper half.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NF_TABLES: u16 = 10;
const NEW_TABLE: u16 = NF_TABLES << 8;
const GET_TABLE: u16 = NF_TABLES << 8 | 1;
const DELETE_TABLE: u16 = NF_TABLES << 8 | 2;
const NEW_CHAIN: u16 = NF_TABLES << 8 | 3;
const GET_CHAIN: u16 = NF_TABLES << 8 | 4;
const NEW_RULE: u16 = NF_TABLES << 8 | 6;
/// Rules are added at the end.
const APPEND: u16 = 0x800;

/// Outlets of one process, at most: a build has one.
const OWN_TABLES_MAX: u32 = 64;

/// IPv4 and IPv6.
const FAMILY_INET: u8 = 1;
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
/// The table goes when the socket that made it is closed (Linux 5.12).
const TABLE_OWNED: u32 = 2;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_FORWARD: u32 = 2;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_DESTINATION_NAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SOURCE_NAT: i32 = 100;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;

const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const REGISTER_OF_PORT: u32 = 2;
const META_IN_NAME: u32 = 6;
const META_OUT_NAME: u32 = 7;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
const EQUAL: u32 = 0;
const DIFFERENT: u32 = 1;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const NAT_DESTINATION: u32 = 1;
const CONNECTION_STATE: u32 = 0;
/// Bits of a connection's state: established, and related to one that is.
const ANSWERS: u32 = 2 | 4;
const DROP: u32 = 0;

/// Length of a register for interfaces' names.
const NAME_BYTES: usize = 16;

/// Leads what is sent to `server`, port 53, in this namespace to the ports of it that answer: a process may have port 53 of its own.
pub(super) fn redirect_names(server: Ipv4Addr, udp: u16, tcp: u16) -> io::Result<()> {
    use Expression::{Destination, Family, Port, Protocol, SendTo};
    let name = "longshore-names";
    let mut table = Message::new(NEW_TABLE, CREATE, &fields());
    table.text(TABLE_NAME, name);
    let output = chain(name, "output", "nat", HOOK_OUTPUT, PRIORITY_DESTINATION_NAT);
    let mut messages = vec![table, output];
    for (protocol, port) in [(libc::IPPROTO_UDP, udp), (libc::IPPROTO_TCP, tcp)] {
        let protocol = u8::try_from(protocol).expect("a small number");
        let expressions = [
            Family(u8::try_from(libc::NFPROTO_IPV4).expect("a small number")),
            Destination(server),
            Protocol(protocol),
            Port(53),
            SendTo(server, port),
        ];
        messages.push(rule(name, "output", &expressions));
    }
    commit(&mut Netlink::netfilter()?, messages)
}

/// Puts the table of lines from these subnets in place: it is there as long as what is returned.
///
/// On kernels where no table has an owner it is there for good, one for all: that is a bridge's, without the bridge.
pub(super) fn hold(subnets: &[Subnet]) -> io::Result<Netlink> {
    let mut netlink = Netlink::netfilter()?;
    let own = std::process::id();
    for number in 0..OWN_TABLES_MAX {
        let name = format!("longshore-lines-{own}-{number}");
        match commit(&mut netlink, lines_table(&name, TABLE_OWNED, subnets)) {
            Ok(()) => return Ok(netlink),
            // That of another outlet of this process, or of one that has its number in another pid namespace.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EPERM)) => {}
            Err(error) if is_unknown(&error) => break,
            Err(error) => return Err(error),
        }
    }
    let name = match subnets {
        [] => "longshore-lines".to_owned(),
        [first, ..] => format!("longshore-lines-{}-{}", first.gateway, subnets.len()),
    };
    match commit(&mut netlink, lines_table(&name, 0, subnets)) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(netlink),
    }
}

/// Whether the kernel does not know what it was asked for.
fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ERANGE)
    )
}

fn lines_table(name: &str, flags: u32, subnets: &[Subnet]) -> Vec<Message> {
    use Expression::{Drop, To, Unasked};
    let mut table = Message::new(NEW_TABLE, CREATE, &fields());
    table.text(TABLE_NAME, name);
    table.attribute(TABLE_FLAGS, &flags.to_be_bytes());
    let lines = || super::line::PREFIX.as_bytes().to_vec();
    let mut messages = vec![
        table,
        chain(name, "forward", "filter", HOOK_FORWARD, PRIORITY_FILTER),
        chain(
            name,
            "postrouting",
            "nat",
            HOOK_POSTROUTING,
            PRIORITY_SOURCE_NAT,
        ),
        rule(name, "forward", &[To(EQUAL, lines()), Unasked, Drop]),
    ];
    let leaving = subnets
        .iter()
        .map(|subnet| leaving(subnet, To(DIFFERENT, lines())));
    messages.extend(leaving.map(|expressions| rule(name, "postrouting", &expressions)));
    messages
}

/// A chain that drops all packets of a family that are passed on unless a rule of its own accepts it, if there is one: what other tables accept does not
/// count there.
pub(super) fn dropping(family: i32) -> io::Result<Option<String>> {
    let mut found = None;
    let everything = Message::new(GET_CHAIN, 0, &[0; 4]);
    let dumped = Netlink::netfilter()?.dump(everything, |kind, content| {
        let Some((fields, rest)) = content.split_at_checked(4) else {
            return;
        };
        let families = [libc::NFPROTO_INET, family];
        if kind != NEW_CHAIN || !families.contains(&i32::from(fields[0])) {
            return;
        }
        let (mut name, mut is_forward, mut drops) = (Vec::new(), false, false);
        for (kind, value) in attributes(rest) {
            match kind {
                CHAIN_NAME => name = value.to_vec(),
                CHAIN_HOOK => {
                    let number = attributes(value).find(|(kind, _)| *kind == HOOK_NUMBER);
                    is_forward = number.is_some_and(|(_, n)| n == HOOK_FORWARD.to_be_bytes());
                }
                CHAIN_POLICY => drops = value == DROP.to_be_bytes(),
                _ => {}
            }
        }
        if is_forward && drops {
            let name = String::from_utf8_lossy(&name);
            found = Some(name.trim_end_matches('\0').to_owned());
        }
    });
    dumped.map(|()| found)
}

/// Puts the bridge's table in place, unless there is one.
pub(super) fn ensure(bridge: &Bridge) -> io::Result<()> {
    let mut netlink = Netlink::netfilter()?;
    let name = table_name(&bridge.name);
    let mut get = Message::new(GET_TABLE, 0, &fields());
    get.text(TABLE_NAME, &name);
    match netlink.request(get) {
        Ok(()) => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(error),
    }
    let mut table = Message::new(NEW_TABLE, CREATE, &fields());
    table.text(TABLE_NAME, &name);
    let mut messages = vec![
        table,
        chain(&name, "forward", "filter", HOOK_FORWARD, PRIORITY_FILTER),
        chain(
            &name,
            "postrouting",
            "nat",
            HOOK_POSTROUTING,
            PRIORITY_SOURCE_NAT,
        ),
    ];
    let rules = rules(bridge).into_iter();
    messages.extend(rules.map(|(chain, expressions)| rule(&name, chain, &expressions)));
    match commit(&mut netlink, messages) {
        // Another sandbox of this network was faster.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// Removes the table of a bridge; one that is not there is no error.
pub(super) fn remove(bridge: &str) -> io::Result<()> {
    let mut netlink = Netlink::netfilter()?;
    let mut delete = Message::new(DELETE_TABLE, 0, &fields());
    delete.text(TABLE_NAME, &table_name(bridge));
    match commit(&mut netlink, vec![delete]) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn commit(netlink: &mut Netlink, messages: Vec<Message>) -> io::Result<()> {
    let [high, low] = NF_TABLES.to_be_bytes();
    let bound = |kind| Message::new(kind, 0, &[0, 0, high, low]);
    netlink.batch(bound(BATCH_BEGIN), messages, bound(BATCH_END))
}

fn table_name(bridge: &str) -> String {
    format!("longshore-{bridge}")
}

fn fields() -> [u8; 4] {
    [FAMILY_INET, 0, 0, 0]
}

fn chain(table: &str, name: &str, kind: &str, hook: u32, priority: i32) -> Message {
    let mut chain = Message::new(NEW_CHAIN, CREATE, &fields());
    chain.text(CHAIN_TABLE, table);
    chain.text(CHAIN_NAME, name);
    chain.nest(CHAIN_HOOK, |nest| {
        nest.attribute(HOOK_NUMBER, &hook.to_be_bytes());
        nest.attribute(HOOK_PRIORITY, &priority.to_be_bytes());
    });
    chain.text(CHAIN_TYPE, kind);
    chain
}

fn rule(table: &str, chain: &str, expressions: &[Expression]) -> Message {
    let mut rule = Message::new(NEW_RULE, CREATE | APPEND, &fields());
    rule.text(RULE_TABLE, table);
    rule.text(RULE_CHAIN, chain);
    rule.nest(RULE_EXPRESSIONS, |list| {
        for expression in expressions {
            expression.write(list);
        }
    });
    rule
}

/// A step of a rule: all have to hold, then the last one's deed is done.
enum Expression {
    /// Compares the name of the interface that a packet comes in by.
    From(u32, Vec<u8>),
    /// Compares the name of the one it goes out by.
    To(u32, Vec<u8>),
    /// The packet is of this family.
    Family(u8),
    /// Its source lies in this subnet.
    Source(Subnet),
    /// It goes to this address.
    Destination(Ipv4Addr),
    /// It is of this transport.
    Protocol(u8),
    /// It goes to this port.
    Port(u16),
    /// It belongs to no connection that is known.
    Unasked,
    Masquerade,
    /// It, and what follows it, goes there instead.
    SendTo(Ipv4Addr, u16),
    Drop,
}

/// The rules, each with its chain.
fn rules(bridge: &Bridge) -> Vec<(&'static str, Vec<Expression>)> {
    use Expression::{Drop, From, To, Unasked};
    let own = || whole_name(&bridge.name);
    let mut rules = Vec::new();
    if bridge.internal {
        rules.push((
            "forward",
            vec![From(EQUAL, own()), To(DIFFERENT, own()), Drop],
        ));
        rules.push((
            "forward",
            vec![From(DIFFERENT, own()), To(EQUAL, own()), Drop],
        ));
        return rules;
    }
    let unasked = vec![From(DIFFERENT, own()), To(EQUAL, own()), Unasked, Drop];
    rules.push(("forward", unasked));
    // A name compared in part is a prefix: all bridges of ours.
    let ours = BRIDGE_PREFIX.as_bytes().to_vec();
    let other = vec![
        From(EQUAL, own()),
        To(DIFFERENT, own()),
        To(EQUAL, ours),
        Drop,
    ];
    rules.push(("forward", other));
    for subnet in &bridge.subnets {
        let leaving = leaving(subnet, To(DIFFERENT, own()));
        rules.push(("postrouting", leaving.into()));
    }
    rules
}

/// What comes from a subnet and leaves by such an interface has the host's address from there on.
fn leaving(subnet: &Subnet, by: Expression) -> [Expression; 4] {
    let family = match subnet.gateway {
        IpAddr::V4(_) => libc::NFPROTO_IPV4,
        IpAddr::V6(_) => libc::NFPROTO_IPV6,
    };
    let family = u8::try_from(family).expect("a small number");
    [
        Expression::Family(family),
        Expression::Source(*subnet),
        by,
        Expression::Masquerade,
    ]
}

fn whole_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME_BYTES, 0);
    bytes
}

impl Expression {
    fn write(&self, list: &mut Message) {
        match self {
            Self::From(comparison, name) => {
                meta(list, META_IN_NAME);
                compare(list, *comparison, name);
            }
            Self::To(comparison, name) => {
                meta(list, META_OUT_NAME);
                compare(list, *comparison, name);
            }
            Self::Family(family) => {
                meta(list, META_FAMILY);
                compare(list, EQUAL, &[*family]);
            }
            Self::Source(subnet) => {
                let (offset, network, mask) = match subnet.gateway {
                    IpAddr::V4(address) => {
                        let mask = u32::MAX.checked_shl(32 - u32::from(subnet.prefix));
                        let mask = mask.unwrap_or(0);
                        let network = (address.to_bits() & mask).to_be_bytes().to_vec();
                        (12_u32, network, mask.to_be_bytes().to_vec())
                    }
                    IpAddr::V6(address) => {
                        let mask = u128::MAX.checked_shl(128 - u32::from(subnet.prefix));
                        let mask = mask.unwrap_or(0);
                        let network = (address.to_bits() & mask).to_be_bytes().to_vec();
                        (8, network, mask.to_be_bytes().to_vec())
                    }
                };
                let length = u32::try_from(mask.len()).expect("4 or 16");
                payload(list, BASE_NETWORK, offset, length);
                bits(list, &mask);
                compare(list, EQUAL, &network);
            }
            Self::Unasked => {
                expression(list, "ct", |data| {
                    number(data, 1, REGISTER);
                    number(data, 2, CONNECTION_STATE);
                });
                bits(list, &ANSWERS.to_ne_bytes());
                compare(list, EQUAL, &[0; 4]);
            }
            Self::Destination(address) => {
                payload(list, BASE_NETWORK, 16, 4);
                compare(list, EQUAL, &address.octets());
            }
            Self::Protocol(protocol) => {
                meta(list, META_PROTOCOL);
                compare(list, EQUAL, &[*protocol]);
            }
            Self::Port(port) => {
                payload(list, BASE_TRANSPORT, 2, 2);
                compare(list, EQUAL, &port.to_be_bytes());
            }
            Self::SendTo(address, port) => {
                load(list, REGISTER, &address.octets());
                load(list, REGISTER_OF_PORT, &port.to_be_bytes());
                expression(list, "nat", |data| {
                    number(data, 1, NAT_DESTINATION);
                    number(data, 2, libc::NFPROTO_IPV4.unsigned_abs());
                    number(data, 3, REGISTER);
                    number(data, 5, REGISTER_OF_PORT);
                });
            }
            Self::Masquerade => expression(list, "masq", |_| ()),
            Self::Drop => expression(list, "immediate", |data| {
                number(data, 1, REGISTER_VERDICT);
                data.nest(2, |value| {
                    value.nest(DATA_VERDICT, |verdict| number(verdict, VERDICT_CODE, DROP));
                });
            }),
        }
    }
}

fn expression(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(LIST_ELEMENT, |element| {
        element.text(EXPRESSION_NAME, name);
        element.nest(EXPRESSION_DATA, fill);
    });
}

/// Loads something known of the packet.
fn meta(list: &mut Message, key: u32) {
    expression(list, "meta", |data| {
        number(data, 1, REGISTER);
        number(data, 2, key);
    });
}

/// Loads bytes of the packet, counted from one of its headers.
fn payload(list: &mut Message, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |data| {
        number(data, 1, REGISTER);
        number(data, 2, base);
        number(data, 3, offset);
        number(data, 4, length);
    });
}

/// Loads a constant.
fn load(list: &mut Message, register: u32, value: &[u8]) {
    expression(list, "immediate", |data| {
        number(data, 1, register);
        data.nest(2, |nest| nest.attribute(DATA_VALUE, value));
    });
}

/// Goes on if what was loaded compares to `value`, as far as that goes.
fn compare(list: &mut Message, comparison: u32, value: &[u8]) {
    expression(list, "cmp", |data| {
        number(data, 1, REGISTER);
        number(data, 2, comparison);
        data.nest(3, |nest| nest.attribute(DATA_VALUE, value));
    });
}

/// Keeps the bits of `mask` of what was loaded.
fn bits(list: &mut Message, mask: &[u8]) {
    let length = u32::try_from(mask.len()).expect("4 or 16");
    expression(list, "bitwise", |data| {
        number(data, 1, REGISTER);
        number(data, 2, REGISTER);
        number(data, 3, length);
        data.nest(4, |nest| nest.attribute(DATA_VALUE, mask));
        data.nest(5, |nest| nest.attribute(DATA_VALUE, &vec![0; mask.len()]));
    });
}

fn number(message: &mut Message, kind: u16, value: u32) {
    message.attribute(kind, &value.to_be_bytes());
}
