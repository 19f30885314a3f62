//! MQTT in: subscriptions at brokers (`broker`), and sensors that publish straight to us (`listener`).
//!
//! The way of a message: socket → [`inbox`] → [`codec`] → session (`broker` or `listener`, with [`unreleased`] for
//! QoS 2) → [`batch`] → [`door`] → buffer. The way of its answer: buffer → [`receipt`] inside
//! [`Durable`](crate::buffer::Durable) → [`acker`] → socket.

pub mod acker;
pub mod batch;
pub mod broker;
pub mod codec;
pub mod door;
pub mod inbox;
pub mod listener;
pub mod receipt;
pub mod status;
pub mod topics;
pub mod unreleased;
