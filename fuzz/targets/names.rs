//! Questions to a sandbox's name server: what is read as one is answered in a form that holds together.
#![no_main]

use std::net::IpAddr;

use runner::network::names::Question;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some(question) = Question::read(data) else {
        return;
    };
    assert!(question.name.len() <= 255);
    let addresses = [IpAddr::from([10, 1, 0, 2]), IpAddr::from([0xfd; 16])];
    let answer = question.answer(data, &addresses);
    assert_eq!(answer[..2], data[..2], "another question's");
    assert_eq!(answer[2] & 0x80, 0x80, "no reply");
    // As many answers as it says, each with a reference for its name: 12 bytes and the address.
    let count = usize::from(u16::from_be_bytes([answer[6], answer[7]]));
    let length = match question.kind {
        1 => 4,
        28 => 16,
        _ => 0,
    };
    assert_eq!(count, usize::from(length > 0));
    let asked = answer.len() - count * (12 + length);
    assert_eq!(
        answer[12..asked],
        data[12..asked],
        "the question is repeated"
    );
});
