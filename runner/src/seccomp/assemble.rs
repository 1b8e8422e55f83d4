//! From rules to a program: a binary search over ranges of numbers for each architecture, then what the rules of that call say.
//!
//! ```text
//! architecture? ─ one of the plan's ─► number ≥ mid? ─ … ─► look at arguments ─► return
//!               └ other             ─► kill
//! ```
//!
//! It is written from its end, so that where a jump leads is known when it is written, and one `return` serves all that come to
//! the same answer: the kernel checks, translates and compiles every instruction each time that a filter is installed.

use std::collections::BTreeMap;

use libc::{SECCOMP_RET_KILL_PROCESS, sock_filter};

/// Numbers from here on are of the x32 interface, which nothing uses and which has had holes of its own.
const X32: u32 = 0x4000_0000;

/// `struct seccomp_data`: the number, the architecture, and six arguments of 64 bits, the lower half first.
pub(crate) const NUMBER_OFFSET: u32 = 0;
pub(crate) const ARCH_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

// Classic BPF.
pub(crate) const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
pub(crate) const JUMP_EQUAL: u16 = 0x15;
const JUMP_ABOVE: u16 = 0x25;
const JUMP_AT_LEAST: u16 = 0x35;
pub(crate) const RETURN: u16 = 0x06;

/// What is returned to the kernel: `SECCOMP_RET_*` with its data.
pub(super) type Action = u32;

/// The calls of one architecture.
#[derive(Debug)]
pub(super) struct Plan {
    /// `AUDIT_ARCH_*`.
    pub(super) arch: u32,
    /// By number.
    pub(super) calls: BTreeMap<u32, Verdict>,
    /// For numbers up to `last` that are not there.
    pub(super) default: Action,
    pub(super) last: u32,
    /// For those beyond.
    pub(super) beyond: Action,
    /// For the x32 interface.
    pub(super) x32: Action,
}

/// What happens to a call: the first rule that matches, else `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) rules: Vec<Rule>,
    pub(super) otherwise: Action,
}

impl Verdict {
    pub(super) fn plain(action: Action) -> Self {
        Self {
            rules: Vec::new(),
            otherwise: action,
        }
    }
}

/// An action for a call all of whose conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

/// `argument & mask OP value`, 64 bits wide and unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument, from 0.
    pub(super) index: u8,
    pub(super) mask: u64,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Above,
    AtLeast,
}

/// The program for `plans`; any other architecture is killed.
pub(super) fn assemble(plans: &[Plan]) -> Vec<sock_filter> {
    let mut writer = Writer::default();
    let mut other = writer.action(SECCOMP_RET_KILL_PROCESS);
    for plan in plans.iter().rev() {
        let found = writer.search(&ranges(plan));
        writer.fall_to(found);
        let block = writer.write(instruction(LOAD, NUMBER_OFFSET));
        other = writer.branch(JUMP_EQUAL, plan.arch, block, other);
    }
    writer.fall_to(other);
    writer.write(instruction(LOAD, ARCH_OFFSET));
    writer.code.reverse();
    writer.code
}

/// The numbers from `start` to the next range's, and what happens to them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    start: u32,
    verdict: Verdict,
}

/// All numbers from 0 up, as ranges in order, neighbours with the same verdict joined.
fn ranges(plan: &Plan) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut push = |start: u32, verdict: Verdict| {
        if ranges.last().is_some_and(|last| last.start == start) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|last| last.verdict != verdict) {
            ranges.push(Range { start, verdict });
        }
    };
    push(0, Verdict::plain(plan.default));
    for (number, verdict) in plan.calls.range(..=plan.last) {
        push(*number, verdict.clone());
        push(number + 1, Verdict::plain(plan.default));
    }
    push(plan.last + 1, Verdict::plain(plan.beyond));
    push(X32, Verdict::plain(plan.x32));
    ranges
}

/// How many instructions there are from the one meant to the end of the program, itself included.
type Place = usize;

/// Conditional jumps skip so many instructions at most; plain ones any number.
const REACH: usize = 255;

/// A program, of which the end is written.
#[derive(Default)]
struct Writer {
    /// The last instruction first.
    code: Vec<sock_filter>,
    /// The nearest `return` of each action.
    returns: BTreeMap<Action, Place>,
}

impl Writer {
    /// Writes what comes before all that is written.
    fn write(&mut self, instruction: sock_filter) -> Place {
        self.code.push(instruction);
        self.code.len()
    }

    fn at(&self, place: Place) -> sock_filter {
        self.code[place - 1]
    }

    /// Where `action` is returned.
    fn action(&mut self, action: Action) -> Place {
        match self.returns.get(&action) {
            Some(place) => *place,
            None => self.write_return(action),
        }
    }

    fn write_return(&mut self, action: Action) -> Place {
        let place = self.write(instruction(RETURN, action));
        self.returns.insert(action, place);
        place
    }

    /// Writes what does the same as the instruction at `place`.
    fn write_way_to(&mut self, place: Place) -> Place {
        let there = self.at(place);
        if there.code == RETURN {
            return self.write_return(there.k);
        }
        let distance = u32::try_from(self.code.len() - place)
            .expect("a program of four billion instructions does not fit in memory");
        self.write(instruction(JUMP, distance))
    }

    /// Makes `place` what comes after the next instruction that is written.
    fn fall_to(&mut self, place: Place) {
        if place != self.code.len() {
            self.write_way_to(place);
        }
    }

    /// The same, where a branch can reach it that is written next, or next but one.
    fn within_reach(&mut self, place: Place) -> Place {
        match self.code.len() + 1 - place {
            ..=REACH => place,
            _ => self.write_way_to(place),
        }
    }

    fn branch(&mut self, code: u16, value: u32, then: Place, otherwise: Place) -> Place {
        let (then, otherwise) = (self.within_reach(then), self.within_reach(otherwise));
        let distance =
            |place| u8::try_from(self.code.len() - place).expect("it was brought within reach");
        let (then, otherwise) = (distance(then), distance(otherwise));
        self.write(branch(code, value, then, otherwise))
    }

    /// A binary search for the accumulator among `ranges`.
    fn search(&mut self, ranges: &[Range]) -> Place {
        if let [only] = ranges {
            return self.outcome(&only.verdict);
        }
        let (below, above) = ranges.split_at(ranges.len() / 2);
        let (start, above) = (above[0].start, self.search(above));
        let below = self.search(below);
        self.branch(JUMP_AT_LEAST, start, above, below)
    }

    fn outcome(&mut self, verdict: &Verdict) -> Place {
        let otherwise = self.action(verdict.otherwise);
        let rules = verdict.rules.iter().rev();
        rules.fold(otherwise, |next, rule| self.rule(rule, next))
    }

    /// `fails` is what comes next if not all conditions hold.
    fn rule(&mut self, rule: &Rule, mut fails: Place) -> Place {
        let conditions: Vec<_> = rule.conditions.iter().map(|c| steps(*c)).collect();
        if let [only] = conditions.as_slice()
            && let [(load, ..), _] = only.as_slice()
            && (self.at(fails).code, self.at(fails).k) == (LOAD, load.k)
        {
            // What the next rule looks at is loaded already.
            fails -= 1;
        }
        let holds = self.action(rule.action);
        let conditions = conditions.iter().rev();
        conditions.fold(holds, |holds, steps| self.condition(steps, holds, fails))
    }

    fn condition(&mut self, steps: &[(sock_filter, To, To)], holds: Place, fails: Place) -> Place {
        let mut next = holds;
        for (step, then, otherwise) in steps.iter().rev() {
            let place = |to: &To| match to {
                To::Next => next,
                To::Holds => holds,
                To::Fails => fails,
            };
            next = match step.code {
                LOAD | AND => self.write(*step),
                code => self.branch(code, step.k, place(then), place(otherwise)),
            };
        }
        next
    }
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum To {
    /// The next instruction.
    Next,
    /// Behind this condition.
    Holds,
    /// Behind this rule.
    Fails,
}

/// The comparison, half by half, since the machine has words of 32 bits.
fn steps(condition: Condition) -> Vec<(sock_filter, To, To)> {
    use Comparison::{Above, AtLeast, AtMost, Equal, Less, NotEqual};
    let Condition {
        index,
        mask,
        comparison,
        value,
    } = condition;
    let low = ARGUMENTS_OFFSET + 8 * u32::from(index);
    let plain = |code, k| (instruction(code, k), To::Next, To::Next);
    let load = |offset, mask: u32| {
        let mut code = vec![plain(LOAD, offset)];
        if mask != u32::MAX {
            code.push(plain(AND, mask));
        }
        code
    };
    let jump = |code, k, then, otherwise| (instruction(code, k), then, otherwise);
    let halves = |bits: u64| {
        let low = u32::try_from(bits & 0xffff_ffff).expect("masked to 32 bits");
        (u32::try_from(bits >> 32).expect("32 bits are left"), low)
    };
    let ((mask_high, mask_low), (high, low_value)) = (halves(mask), halves(value));
    let mut code = Vec::new();
    if mask_high != 0 || high != 0 {
        code.extend(load(low + 4, mask_high));
        match comparison {
            Equal => code.push(jump(JUMP_EQUAL, high, To::Next, To::Fails)),
            NotEqual => code.push(jump(JUMP_EQUAL, high, To::Next, To::Holds)),
            Above | AtLeast => code.extend([
                jump(JUMP_ABOVE, high, To::Holds, To::Next),
                jump(JUMP_EQUAL, high, To::Next, To::Fails),
            ]),
            Less | AtMost => code.extend([
                jump(JUMP_ABOVE, high, To::Fails, To::Next),
                jump(JUMP_EQUAL, high, To::Next, To::Holds),
            ]),
        }
    }
    code.extend(load(low, mask_low));
    code.push(match comparison {
        Equal => jump(JUMP_EQUAL, low_value, To::Next, To::Fails),
        NotEqual => jump(JUMP_EQUAL, low_value, To::Fails, To::Next),
        Above => jump(JUMP_ABOVE, low_value, To::Next, To::Fails),
        AtLeast => jump(JUMP_AT_LEAST, low_value, To::Next, To::Fails),
        Less => jump(JUMP_AT_LEAST, low_value, To::Fails, To::Next),
        AtMost => jump(JUMP_ABOVE, low_value, To::Fails, To::Next),
    });
    code
}

pub(crate) fn instruction(code: u16, value: u32) -> sock_filter {
    branch(code, value, 0, 0)
}

pub(crate) fn branch(code: u16, value: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter {
        code,
        jt: then,
        jf: otherwise,
        k: value,
    }
}

/// What a program answers, by a small interpreter of the instructions that it uses.
#[cfg(test)]
pub(super) fn answer(
    program: &[sock_filter],
    arch: u32,
    number: u32,
    arguments: [u64; 6],
) -> Action {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let step = program[at];
        at += 1;
        let branch = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
        match step.code {
            LOAD => {
                accumulator = match step.k {
                    NUMBER_OFFSET => number,
                    ARCH_OFFSET => arch,
                    offset => {
                        let offset = usize::try_from(offset - ARGUMENTS_OFFSET).unwrap();
                        let halves = arguments[offset / 8].to_le_bytes();
                        let half = halves[offset % 8..].first_chunk().unwrap();
                        u32::from_le_bytes(*half)
                    }
                }
            }
            AND => accumulator &= step.k,
            JUMP => at += usize::try_from(step.k).unwrap(),
            JUMP_EQUAL => at += branch(accumulator == step.k),
            JUMP_ABOVE => at += branch(accumulator > step.k),
            JUMP_AT_LEAST => at += branch(accumulator >= step.k),
            RETURN => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every comparison, against what the processor says, at the edges of both halves.
    #[test]
    fn comparisons_are_of_64_bits() {
        let edges = [
            0,
            1,
            8,
            0x7fff_ffff,
            0xffff_fffe,
            0xffff_ffff,
            0x1_0000_0000,
            0x1_0000_0008,
            0x8000_0000_0000_0000,
            u64::MAX - 1,
            u64::MAX,
        ];
        type Holds = fn(u64, u64) -> bool;
        let comparisons: [(Comparison, Holds); 6] = [
            (Comparison::Equal, |a, b| a == b),
            (Comparison::NotEqual, |a, b| a != b),
            (Comparison::Less, |a, b| a < b),
            (Comparison::AtMost, |a, b| a <= b),
            (Comparison::Above, |a, b| a > b),
            (Comparison::AtLeast, |a, b| a >= b),
        ];
        for (comparison, holds) in comparisons {
            for index in [0, 5] {
                for mask in [u64::MAX, 0xffff_ffff, 0x8000_0000_0000_0001, 0] {
                    for value in edges {
                        let condition = Condition {
                            index,
                            mask,
                            comparison,
                            value,
                        };
                        let other = Condition {
                            index: 1,
                            mask: u64::MAX,
                            comparison: Comparison::Equal,
                            value: 7,
                        };
                        // Alone, and with one behind and one before it.
                        for conditions in [
                            vec![condition],
                            vec![condition, other],
                            vec![other, condition],
                        ] {
                            let both = conditions.len() > 1;
                            let verdict = Verdict {
                                rules: vec![Rule {
                                    conditions,
                                    action: 1,
                                }],
                                otherwise: 2,
                            };
                            let plan = Plan {
                                arch: 3,
                                calls: BTreeMap::from([(5, verdict)]),
                                default: 4,
                                last: 9,
                                beyond: 5,
                                x32: 6,
                            };
                            let program = assemble(&[plan]);
                            for argument in edges {
                                for second in [7, 8] {
                                    let mut arguments = [0, second, 0, 0, 0, 0];
                                    arguments[usize::from(index)] = argument;
                                    let matches =
                                        holds(argument & mask, value) && (!both || second == 7);
                                    assert_eq!(
                                        answer(&program, 3, 5, arguments),
                                        if matches { 1 } else { 2 },
                                        "{condition:?} {argument:#x} {second}"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_and_architectures() {
        let plan = |arch, calls: &[u32]| Plan {
            arch,
            calls: calls
                .iter()
                .map(|number| (*number, Verdict::plain(1)))
                .collect(),
            default: 2,
            last: 600,
            beyond: 3,
            x32: 4,
        };
        let even: Vec<u32> = (0..=300).map(|number| number * 2).collect();
        let program = assemble(&[plan(10, &even), plan(11, &[0, 600, 601])]);
        for number in 0..=602 {
            let expect = match number {
                601.. => 3,
                number => 1 + number % 2,
            };
            assert_eq!(answer(&program, 10, number, [0; 6]), expect, "{number}");
            let expect = match number {
                0 | 600 => 1,
                601.. => 3,
                _ => 2,
            };
            assert_eq!(answer(&program, 11, number, [0; 6]), expect, "{number}");
        }
        assert_eq!(answer(&program, 10, X32, [0; 6]), 4);
        assert_eq!(answer(&program, 10, u32::MAX, [0; 6]), 4);
        assert_eq!(answer(&program, 12, 0, [0; 6]), SECCOMP_RET_KILL_PROCESS);
    }
}
