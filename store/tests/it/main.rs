//! The store from outside: processes that are killed, and archives that other tools read and write.

mod killed;
mod peers;
