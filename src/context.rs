//! Context variables: values that follow the work instead of the thread (PEP 567).
//!
//! A [`Context`] is a shared, mutable set of values. Whatever runs later takes a copy of the
//! current one when it is scheduled (callbacks, timers, watchers, done-callbacks) or created
//! (tasks), and runs in it. A context given by hand is not copied: it is shared and changed in
//! place.
//!
//! What must always hold:
//!
//! 1. The context that is current in a thread is `None` where it is empty: work scheduled in an
//!    empty context carries a null pointer and costs nothing.
//! 2. A copy is made on write: the values are behind one `Rc`, and a variable that is set replaces
//!    the list, never a list that somebody else can see.
//! 3. No user code runs under a borrow: values that are replaced are dropped after it has ended.
//!
//! It does not know loops, and works in a thread without one.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Declares a value that follows tasks and callbacks.
///
/// Usually a `static`. `T` need not be `Send`: contexts stay in their thread.
///
/// # Examples
///
/// ```
/// use coloop::{ContextVar, EventLoop};
///
/// static REQUEST: ContextVar<u32> = ContextVar::new("request");
///
/// let event_loop = EventLoop::new()?;
/// let seen = event_loop.run_until_complete(async {
///     REQUEST.set(7);
///     let child = coloop::current().create_task(async {
///         let inherited = REQUEST.get();
///         REQUEST.set(8);
///         inherited
///     });
///     (child.await.unwrap(), REQUEST.get())
/// })?;
/// assert_eq!(seen, (Some(7), Some(7)));
/// assert_eq!(REQUEST.get(), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ContextVar<T: 'static> {
    name: &'static str,
    /// Zero until the variable is first used.
    id: AtomicU32,
    value: PhantomData<fn(T) -> T>,
}

impl<T: Clone + 'static> ContextVar<T> {
    /// Declares a variable; the name appears in its `Debug` output.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            id: AtomicU32::new(0),
            value: PhantomData,
        }
    }

    /// Returns the name it was declared with.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the value in the current context.
    pub fn get(&self) -> Option<T> {
        let values = CURRENT.try_with(|current| {
            let current = current.borrow();
            current.as_ref().and_then(|context| context.values())
        });
        self.find(values.ok().flatten().as_ref())
    }

    /// Sets the value in the current context and returns a token that undoes it.
    ///
    /// Work that was scheduled before keeps the earlier value.
    pub fn set(&self, value: T) -> Token<T> {
        let context = Context::current_shared();
        let before = context.replace(self.id(), Some(Value::new(value)));
        Token {
            id: self.id(),
            before,
            context,
            value: PhantomData,
        }
    }

    /// Puts back the value that was there before `token`'s `set`.
    ///
    /// # Errors
    ///
    /// [`WrongToken`] if the token is another variable's or was made in another context; nothing is
    /// changed then.
    pub fn reset(&self, token: Token<T>) -> Result<(), WrongToken> {
        if token.id != self.id() || !token.context.is_current() {
            return Err(WrongToken);
        }
        drop(token.context.replace(token.id, token.before));
        Ok(())
    }

    fn find(&self, values: Option<&Rc<Values>>) -> Option<T> {
        let id = self.id();
        let (_, value) = values?.iter().find(|(key, _)| *key == id)?;
        value.0.as_ref()?.downcast_ref::<T>().cloned()
    }

    fn id(&self) -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = self.id.load(Ordering::Relaxed);
        if id != 0 {
            return id;
        }
        let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
        match self
            .id
            .compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => fresh,
            Err(other) => other,
        }
    }
}

impl<T> fmt::Debug for ContextVar<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ContextVar").field(&self.name).finish()
    }
}

/// Undoes one `set` of a [`ContextVar`].
pub struct Token<T: 'static> {
    id: u32,
    before: Option<Value>,
    context: Context,
    value: PhantomData<T>,
}

impl<T> fmt::Debug for Token<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

/// Says that a [`Token`] belongs to another variable or another context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrongToken;

impl fmt::Display for WrongToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the token was made by another variable or in another context")
    }
}

impl std::error::Error for WrongToken {}

impl From<WrongToken> for io::Error {
    fn from(error: WrongToken) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

type Values = Vec<(u32, Value)>;

/// A variable's value. Many go at once, at places where no panic may come out: one ends here.
#[derive(Clone)]
struct Value(Option<Rc<dyn Any>>);

impl Value {
    fn new(value: impl Any) -> Self {
        Self(Some(Rc::new(value)))
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        let value = self.0.take();
        let dropped = panic::catch_unwind(AssertUnwindSafe(|| drop(value)));
        if let Err(payload) = dropped {
            mem::forget(payload);
        }
    }
}

/// Holds the values of context variables; clones share them.
///
/// # Examples
///
/// ```
/// use coloop::{Context, ContextVar};
///
/// static USER: ContextVar<&str> = ContextVar::new("user");
///
/// let context = Context::new();
/// context.run(|| USER.set("ann"));
/// assert_eq!(context.get(&USER), Some("ann"));
/// assert_eq!(USER.get(), None);
/// ```
#[derive(Clone, Default)]
pub struct Context(Rc<Cell<Option<Rc<Values>>>>);

thread_local! {
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
    /// Whether `CURRENT` may be something: asked once an item, so it must cost next to nothing.
    static USED: Cell<bool> = const { Cell::new(false) };
    static UNWOUND: Cell<Option<Context>> = const { Cell::new(None) };
}

impl Context {
    /// Makes an empty context.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a copy of the current context.
    #[doc(alias = "copy_context")]
    pub fn current() -> Self {
        Self::capture().unwrap_or_default()
    }

    /// Returns a context of its own that starts with the same values.
    pub fn copy(&self) -> Self {
        Self(Rc::new(Cell::new(self.values())))
    }

    /// Runs `f` in this context: what it sets stays here.
    ///
    /// A context may be entered again while it is running.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        let _entered = enter(Some(self.clone()));
        f()
    }

    /// Returns the value of a variable in this context.
    pub fn get<T: Clone + 'static>(&self, variable: &ContextVar<T>) -> Option<T> {
        variable.find(self.values().as_ref())
    }

    /// Returns a copy of the current context, or `None` if that is empty.
    #[inline]
    pub(crate) fn capture() -> Option<Self> {
        if is_used() {
            Self::capture_used()
        } else {
            None
        }
    }

    #[cold]
    fn capture_used() -> Option<Self> {
        let current = CURRENT.try_with(|current| current.borrow().clone());
        current
            .ok()
            .flatten()
            .filter(|current| !current.is_empty())
            .map(|current| current.copy())
    }

    fn current_shared() -> Self {
        USED.with(|used| used.set(true));
        CURRENT.with(|current| current.borrow_mut().get_or_insert_default().clone())
    }

    fn is_current(&self) -> bool {
        CURRENT.with(|current| {
            current
                .borrow()
                .as_ref()
                .is_some_and(|current| Rc::ptr_eq(&current.0, &self.0))
        })
    }

    fn is_empty(&self) -> bool {
        self.values().is_none()
    }

    fn values(&self) -> Option<Rc<Values>> {
        let values = self.0.take();
        let copy = values.clone();
        self.0.set(values);
        copy
    }

    /// Puts a value in place of another and returns the other.
    fn replace(&self, id: u32, value: Option<Value>) -> Option<Value> {
        let mut values = self.0.take().map(Rc::unwrap_or_clone).unwrap_or_default();
        let at = values.iter().position(|(key, _)| *key == id);
        let before = match (at, value) {
            (Some(at), Some(value)) => Some(mem::replace(&mut values[at].1, value)),
            (Some(at), None) => Some(values.remove(at).1),
            (None, Some(value)) => {
                values.push((id, value));
                None
            }
            (None, None) => None,
        };
        self.0.set((!values.is_empty()).then(|| Rc::new(values)));
        before
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.values().map_or(0, |values| values.len());
        f.debug_struct("Context")
            .field("variables", &count)
            .finish()
    }
}

/// Leaves a context again when it is dropped.
pub(crate) struct Entered(Option<Context>);

/// Makes `context` the current one until the guard is dropped.
pub(crate) fn enter(context: Option<Context>) -> Entered {
    Entered(swap(context))
}

impl Drop for Entered {
    fn drop(&mut self) {
        drop(swap(self.0.take()));
    }
}

/// Runs an item of the line in its context.
///
/// If it panics, the context is kept for whoever reports that; see [`take_unwound`].
pub(crate) fn run_item<R>(context: Context, f: impl FnOnce() -> R) -> R {
    struct Item(Option<Context>);
    impl Drop for Item {
        fn drop(&mut self) {
            let left = swap(self.0.take());
            if std::thread::panicking() {
                let _ = UNWOUND.try_with(|unwound| unwound.replace(left));
            }
        }
    }

    let _item = Item(swap(Some(context)));
    f()
}

/// The context of the item that has just panicked.
pub(crate) fn take_unwound() -> Option<Context> {
    // One that had no context of its own may have begun one.
    let begun = swap(None);
    UNWOUND.take().or(begun)
}

/// The current context itself, unless it is empty.
pub(crate) fn current() -> Option<Context> {
    if !is_used() {
        return None;
    }
    CURRENT
        .try_with(|current| current.borrow().clone())
        .ok()
        .flatten()
}

/// Whether the current context may be other than empty.
#[inline]
pub(crate) fn is_used() -> bool {
    USED.try_with(Cell::get).unwrap_or(false)
}

/// Makes `context` current and returns the one that was.
pub(crate) fn swap(context: Option<Context>) -> Option<Context> {
    if context.is_none() && !is_used() {
        return None;
    }
    let _ = USED.try_with(|used| used.set(context.is_some()));
    CURRENT
        .try_with(|current| mem::replace(&mut *current.borrow_mut(), context))
        .unwrap_or_default()
}

/// Empties the current context after a piece of work that had none of its own.
#[inline]
pub(crate) fn clear() {
    if is_used() {
        clear_used();
    }
}

#[cold]
fn clear_used() {
    drop(swap(None));
}

#[cfg(test)]
mod tests {
    use super::*;

    static A: ContextVar<u32> = ContextVar::new("a");
    static B: ContextVar<Rc<str>> = ContextVar::new("b");

    #[test]
    fn set_reset_and_copies_do_not_touch_one_another() {
        let context = Context::new();
        context.run(|| {
            assert_eq!(A.get(), None);
            let token = A.set(1);
            B.set("x".into());
            let copy = Context::current();
            let inner = A.set(2);
            assert_eq!((A.get(), copy.get(&A)), (Some(2), Some(1)));
            assert_eq!(copy.run(|| A.reset(inner)), Err(WrongToken));
            assert_eq!(A.reset(token), Ok(()));
            assert_eq!((A.get(), B.get().as_deref()), (None, Some("x")));
        });
        assert_eq!((A.get(), context.get(&B).as_deref()), (None, Some("x")));
        assert!(Context::capture().is_none());
    }

    #[test]
    fn a_context_can_be_entered_again_while_it_runs() {
        let context = Context::new();
        context.run(|| {
            A.set(1);
            context.run(|| A.set(2));
            assert_eq!(A.get(), Some(2));
        });
        assert_eq!(context.get(&A), Some(2));
    }
}
