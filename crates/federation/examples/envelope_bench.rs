//! What the envelope costs beside its signature: sealing and verifying commands, against bare signing and
//! strict verification of the same bytes. Prints one line of JSON for each body size; the ratio is of speeds, 1 is
//! no cost at all.
//!
//! `cargo run --release -p mosaic-federation --example envelope_bench`

use std::{hint::black_box, time::Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer as _, SigningKey};
use mosaic_federation::{
    command::{CommandBuilder, SealedCommand},
    dsse::{PayloadType, ReceivedEnvelope, pae},
    identity::Identity,
    key::Keyring,
};
use mosaic_types::{
    ConnectionId, Timestamp,
    command::CommandType,
    connection::{Connection, ConnectionState, NodeRole},
    grant::Grants,
};
use serde_json::{Value, json, value::RawValue};

/// Short rounds, and many: a round that the machine interrupts is then an outlier, which a median leaves out.
const ROUNDS: usize = 401;
const PER_ROUND: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let identity = Identity::load_or_create(dir.path())?;
    let now = Timestamp::now();
    let peer = Connection {
        connection_id: ConnectionId::generate(),
        peer: identity.instance_id().clone(),
        name: "bench".to_owned(),
        role: NodeRole::Hub,
        url: None,
        keys: vec![identity.peer_key(now)],
        protocol: 1,
        state: ConnectionState::Active,
        granted: Grants::none(),
        received: Grants::none(),
        invite_id: None,
        outgoing: false,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    let mut keyring = Keyring::default();
    keyring.add(&peer);
    let bare = SigningKey::from_bytes(&[7; 32]);
    let bare_public = bare.verifying_key();
    for payload_bytes in [0_usize, 1 << 10, 16 << 10, 128 << 10] {
        // Written beforehand: what a payload costs as JSON is not the envelope's cost.
        let payload = json!({ "text": "x".repeat(payload_bytes) }).to_string();
        let payload = RawValue::from_string(payload)?;
        let seal = || -> Result<SealedCommand, Box<dyn std::error::Error>> {
            Ok(
                CommandBuilder::new(identity.instance_id(), CommandType::AgentStatus)
                    .seal(&identity, &payload, now)?,
            )
        };
        let envelope: Value = serde_json::from_slice(&seal()?.bytes)?;
        let body = STANDARD.decode(envelope["payload"].as_str().unwrap_or_default())?;
        let signed = pae(PayloadType::Command.as_str(), &body);

        let (mut bare_nanos, mut ours_nanos) = (Vec::new(), Vec::new());
        // Side by side in one run, so that what else the machine does meets both alike.
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for _ in 0..PER_ROUND {
                let signature = bare.sign(black_box(&signed));
                bare_public.verify_strict(black_box(&signed), &signature)?;
            }
            bare_nanos.push(start.elapsed().as_nanos());
            let start = Instant::now();
            for _ in 0..PER_ROUND {
                let sealed = seal()?;
                let received = ReceivedEnvelope::parse(black_box(&sealed.bytes))?;
                black_box(received.verify_with(&peer, &keyring, now)?);
            }
            ours_nanos.push(start.elapsed().as_nanos());
        }
        let (bare_nanos, ours_nanos) = (median(bare_nanos), median(ours_nanos));
        let line = json!({
            "signedBytes": signed.len(),
            "bareMicros": bare_nanos as f64 / 1000.0 / PER_ROUND as f64,
            "envelopeMicros": ours_nanos as f64 / 1000.0 / PER_ROUND as f64,
            "ratio": bare_nanos as f64 / ours_nanos as f64,
        });
        println!("{line}");
    }
    Ok(())
}

fn median(mut values: Vec<u128>) -> u128 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
