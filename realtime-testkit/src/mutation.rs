//! Bytes that are almost right: random mutations with a seed that repeats them.

/// Numbers from a seed (xorshift64*); the same on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        // Never zero, and neighbouring seeds far apart.
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() >> 11) as usize % limit
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Values at which length fields and counters break.
const EDGES: [u32; 12] = [0, 1, 4, 0x7f, 0xff, 0xffff, 0x000f_ffff, 0x0010_0000, 0x0010_0001, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];

/// Changes `bytes` in one to four places: bits, bytes, numbers, pieces that are cut, repeated or
/// come from `other`.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            bytes.push(random.number() as u8);
            continue;
        }
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.number() as u8,
            2 => {
                let edge = random.pick(&EDGES).to_le_bytes();
                let room = (bytes.len() - at).min(edge.len());
                bytes[at..at + room].copy_from_slice(&edge[..room]);
            }
            3 => bytes.truncate(at),
            4 => drop(bytes.remove(at)),
            5 => bytes.insert(at, random.number() as u8),
            6 => {
                let end = at + random.below(bytes.len() - at + 1).min(64);
                bytes.extend_from_within(at..end);
            }
            _ => {
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
}
