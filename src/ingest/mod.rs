//! MQTT in: subscriptions at brokers (`broker`), and sensors that publish straight to us (`listener`).

pub mod receipt;
pub mod status;
