//! MQTT in: subscriptions at brokers (`broker`), and sensors that publish straight to us (`listener`).
//!
//! Both are roles of one loop ([`connection`]) over one kind of socket ([`stream`]); [`close`] has every reason for its end,
//! [`limits`] every number.
//!
//! The way of a message: socket → [`inbox`] → [`codec`] → session (`broker` or `listener`, with [`unreleased`] for
//! QoS 2) → [`batch`] → [`session_intake`] → buffer. The way of its answer: buffer → [`receipt`] inside
//! [`Durable`](crate::buffer::Durable) → [`acker`] → socket.

pub(crate) mod acker;
pub(crate) mod batch;
pub(crate) mod broker;
mod close;
mod connection;
pub(crate) mod codec;
pub(crate) mod session_intake;
pub(crate) mod inbox;
pub(crate) mod limits;
pub(crate) mod listener;
pub(crate) mod receipt;
mod standstill;
pub(crate) mod status;
mod stream;
pub(crate) mod topics;
pub(crate) mod unreleased;
