//! What is behind a door and who may pass: the gate without its lock, pure. The gate wraps it for real handles and
//! proofs, and the model of the lifecycle (`lifecycle/model.rs`) runs it against every interleaving.

/// What a kill order met: `H` holds processes, `P` proves a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target<H, P> {
    /// No process was there, and none will be.
    NeverStarted,
    /// A daemon before this one may have left processes; they have not been found yet.
    Unknown,
    /// This is to be killed.
    Live(H),
    /// It waits for another attempt; the one before was proven dead so.
    Between(P),
    /// It had ended, by itself or by an earlier kill, and that is proven.
    Ended(P),
}

/// Why a launch did not happen.
#[derive(Debug)]
pub enum LaunchRefused<E> {
    /// A kill was ordered.
    Ordered,
    /// It was tried and failed; nothing runs.
    Failed(E),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Inside<H, P> {
    /// No process.
    Nothing,
    /// No process; the attempt before was proven dead so.
    Between(P),
    /// What a daemon before this one started has not been found yet.
    Unknown,
    /// Processes, or the remains of some whose death is not proven.
    Live(H),
    /// Proven dead, for good: ended by itself, or killed.
    Ended(P),
}

/// See the module documentation; `O` is a kill order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Machine<O, H, P> {
    order: Option<O>,
    /// An order for whatever would follow the attempt that is there.
    after: Option<O>,
    inside: Inside<H, P>,
}

impl<O, H, P> Machine<O, H, P> {
    /// Nothing is behind it, and no kill was ordered.
    pub const NEW: Self = Self {
        order: None,
        after: None,
        inside: Inside::Nothing,
    };
}

impl<O, H, P> Default for Machine<O, H, P> {
    fn default() -> Self {
        Self::NEW
    }
}

impl<O: Clone, H: Clone, P: Clone> Machine<O, H, P> {
    /// Starts something, unless a kill was ordered.
    ///
    /// # Errors
    /// [`LaunchRefused`]; then nothing was started.
    pub fn launch<E>(
        &mut self,
        start: impl FnOnce() -> Result<H, E>,
    ) -> Result<H, LaunchRefused<E>> {
        if self.order.is_some() || self.after.is_some() {
            return Err(LaunchRefused::Ordered);
        }
        let handle = start().map_err(LaunchRefused::Failed)?;
        self.inside = Inside::Live(handle.clone());
        Ok(handle)
    }

    /// Takes over what a daemon before this one started.
    pub fn adopt(&mut self, handle: H) {
        self.inside = Inside::Live(handle);
    }

    /// Orders the kill, and tells what it meets. The first order stays; one that comes after the end is none.
    pub fn order(&mut self, order: O) -> Target<H, P> {
        let target = match &self.inside {
            Inside::Ended(proof) => return Target::Ended(proof.clone()),
            Inside::Live(handle) => Target::Live(handle.clone()),
            Inside::Nothing => Target::NeverStarted,
            Inside::Unknown => Target::Unknown,
            Inside::Between(proof) => Target::Between(proof.clone()),
        };
        self.order.get_or_insert(order);
        target
    }

    /// Orders that no attempt follows the one that is there, which has ended by itself and keeps its result: a kill, if
    /// another was to follow. `true` if that is known already: the kill is ordered.
    pub fn order_after(&mut self, order: O) -> bool {
        if self.order.is_some() {
            return false;
        }
        match self.inside {
            Inside::Ended(_) => return false,
            Inside::Nothing | Inside::Unknown | Inside::Live(_) => {}
            Inside::Between(_) => {
                self.order = Some(order);
                return true;
            }
        }
        self.after.get_or_insert(order);
        false
    }

    /// Whether the agent is proven dead for good.
    pub fn is_over(&self) -> bool {
        matches!(self.inside, Inside::Ended(_))
    }

    /// Whether there are processes, or the remains of some whose death is not proven.
    pub fn is_live(&self) -> bool {
        matches!(self.inside, Inside::Live(_))
    }

    /// The order, if one was given.
    pub fn ordered(&self) -> Option<&O> {
        self.order.as_ref()
    }

    /// The order for what would follow, if one was given and it is not the agent's kill.
    pub fn ordered_after(&self) -> Option<&O> {
        self.after.as_ref().filter(|_| self.order.is_none())
    }

    /// An ordered kill is proven: whoever orders another is told of this one.
    pub fn killed(&mut self, proof: P) {
        self.inside = Inside::Ended(proof);
    }

    /// What a daemon before this one started is still to be found.
    pub fn not_found_yet(&mut self) {
        self.inside = Inside::Unknown;
    }

    /// Nothing of a daemon before this one is there.
    pub fn found_nothing(&mut self) {
        if matches!(self.inside, Inside::Unknown) {
            self.inside = Inside::Nothing;
        }
    }

    /// The attempt is proven dead; another may be launched, unless a kill was ordered. `true` if one was ordered for
    /// just this case: it is the agent's kill from here on.
    pub fn attempt_over(&mut self, proof: P) -> bool {
        if matches!(self.inside, Inside::Live(_) | Inside::Nothing) {
            self.inside = Inside::Between(proof);
        }
        let turns = self.order.is_none() && self.after.is_some();
        self.order = self.order.take().or_else(|| self.after.take());
        turns
    }

    /// The agent is proven dead and ends by itself, unless a kill was ordered before.
    ///
    /// # Errors
    /// The order.
    pub fn end(&mut self, proof: P) -> Result<(), O> {
        if let Some(order) = &self.order {
            return Err(order.clone());
        }
        self.inside = Inside::Ended(proof);
        Ok(())
    }
}
