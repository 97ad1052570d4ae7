//! The attributes `#[coloop::main]` and `#[coloop::test]`.
//!
//! Both turn an `async fn` without parameters into a plain function that runs it on an event loop
//! of its own. Programs reach them through the crate `coloop` and its feature `macros`; the
//! expansion names `::coloop`, so this crate is of no use without that one.
//!
//! What must always hold:
//!
//! 1. The written function stays whole, as an inner `async fn` of the same name and return type:
//!    `?`, `return`, inferred types, lints and the places of errors are those of the source.
//! 2. All other attributes stay on the outer function, so `#[should_panic]` and `#[ignore]` act as
//!    they do on any test.
//! 3. Everything that is wrong with a function is said at once, each at its own place.
//!
//! It chooses nothing about the loop: what a loop is like by default is decided in `coloop`.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream};
use syn::{AttrStyle, Error, Ident, ItemFn, Safety, Signature, Token, Visibility};

/// Runs an `async fn main` on a new event loop.
///
/// The function becomes a plain `fn main` that hands the written body to `coloop::run`, which
/// makes a loop, runs the body to its end, cancels what is left and closes the loop. Visibility,
/// return type and every other attribute stay as they are. The function may bear another name than
/// `main`.
///
/// It takes no arguments. For a loop with other settings, write a plain `fn main` that makes one
/// with `EventLoop::builder()`.
///
/// # Examples
///
/// ```text
/// use std::{io, time::Duration};
///
/// #[coloop::main]
/// async fn main() -> io::Result<()> {
///     coloop::sleep(Duration::from_millis(1)).await;
///     Ok(())
/// }
/// ```
///
/// # Errors
///
/// The compiler refuses a function that is not `async`, is `unsafe`, or has parameters or generics,
/// and any argument of the attribute.
///
/// # Panics
///
/// The made function panics as `coloop::run` does: when the system refuses a new loop, and with
/// the body's own panic.
///
/// # Coming from asyncio
///
/// This is `asyncio.run(main())` at the end of a script.
#[proc_macro_attribute]
pub fn main(
    args: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    expand_main(args.into(), item.into()).into()
}

/// Makes a test of an `async fn`, run on a new event loop.
///
/// The function becomes a plain `#[test]` that hands the written body to `coloop::testing::run`.
/// Every other attribute, such as `#[should_panic]` or `#[ignore]`, acts as it does on any test,
/// and the function may return whatever a test may return.
///
/// With `#[coloop::test(virtual_clock)]` the loop has a clock of its own that jumps to the next
/// deadline as soon as nothing else is left to do: a test that sleeps for an hour is over at once.
///
/// # Examples
///
/// ```text
/// use std::time::Duration;
///
/// #[coloop::test]
/// async fn tasks_give_their_value_back() {
///     let task = coloop::current().create_task(async { 6 * 7 });
///     assert!(matches!(task.await, Ok(42)));
/// }
///
/// #[coloop::test(virtual_clock)]
/// async fn an_hour_is_over_at_once() {
///     let before = coloop::current().time();
///     coloop::sleep(Duration::from_secs(3600)).await;
///     assert_eq!(coloop::current().time() - before, Duration::from_secs(3600));
/// }
/// ```
///
/// # Errors
///
/// The compiler refuses a function that is not `async`, is `unsafe`, or has parameters or generics,
/// a second `#[test]`, and any argument but `virtual_clock`.
///
/// # Coming from asyncio
///
/// This is a method of `unittest.IsolatedAsyncioTestCase`.
#[proc_macro_attribute]
pub fn test(
    args: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    expand_test(args.into(), item.into()).into()
}

/// What `#[main]` may be given: nothing.
struct MainArgs;

impl Parse for MainArgs {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        if input.is_empty() {
            return Ok(Self);
        }
        Err(Error::new(
            input.span(),
            "`#[coloop::main]` takes no arguments; a plain `fn main` can set up a loop with \
             `coloop::EventLoop::builder()`",
        ))
    }
}

/// Which clock `#[test]` was asked for.
enum TestArgs {
    System,
    Virtual,
}

impl Parse for TestArgs {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        const EXPECTED: &str = "`#[coloop::test]` takes nothing or `virtual_clock`";
        if input.is_empty() {
            return Ok(Self::System);
        }
        let argument: Ident = input
            .parse()
            .map_err(|error| Error::new(error.span(), EXPECTED))?;
        if argument != "virtual_clock" {
            return Err(Error::new(argument.span(), EXPECTED));
        }
        input.parse::<Option<Token![,]>>()?;
        if input.is_empty() {
            Ok(Self::Virtual)
        } else {
            Err(Error::new(input.span(), EXPECTED))
        }
    }
}

fn expand_main(args: TokenStream, item: TokenStream) -> TokenStream {
    let attribute = "`#[coloop::main]`";
    let runner = syn::parse2(args).map(|MainArgs| quote!(::coloop::run));
    expand(attribute, runner, None, item)
}

fn expand_test(args: TokenStream, item: TokenStream) -> TokenStream {
    let attribute = "`#[coloop::test]`";
    let runner = syn::parse2(args).map(|clock| match clock {
        TestArgs::System => quote!(::coloop::testing::run),
        TestArgs::Virtual => quote!(::coloop::testing::run_virtual),
    });
    let mark = quote!(#[::core::prelude::v1::test]);
    expand(attribute, runner, Some(mark), item)
}

/// Wraps the written function in a plain one that carries `mark` and calls `runner` on it.
fn expand(
    attribute: &str,
    runner: syn::Result<TokenStream>,
    mark: Option<TokenStream>,
    item: TokenStream,
) -> TokenStream {
    let mut function: ItemFn = match syn::parse2(item) {
        Ok(function) => function,
        Err(error) => return error.into_compile_error(),
    };
    let mut errors = refusals(attribute, mark.is_some(), &function);
    let runner = runner.unwrap_or_else(|error| {
        errors.push(error);
        TokenStream::new()
    });
    if !errors.is_empty() {
        let errors = errors.into_iter().map(Error::into_compile_error);
        // A missing `main` would be one more complaint, about something nobody did wrong.
        let stub = (function.sig.ident == "main").then(|| quote! { fn main() {} });
        return quote!(#(#errors)* #stub);
    }

    let attrs = std::mem::take(&mut function.attrs);
    let (outer, inner): (Vec<_>, _) = attrs
        .into_iter()
        .partition(|attr| matches!(attr.style, AttrStyle::Outer));
    function.attrs = inner;
    let vis = std::mem::replace(&mut function.vis, Visibility::Inherited);
    let Signature {
        fn_token,
        ident,
        output,
        ..
    } = &function.sig;
    quote! {
        #mark
        #(#outer)*
        #vis #fn_token #ident() #output {
            #function
            #runner(#ident())
        }
    }
}

/// Lists everything that keeps `function` from being an entry point.
fn refusals(attribute: &str, is_test: bool, function: &ItemFn) -> Vec<Error> {
    let sig = &function.sig;
    let mut errors = Vec::new();
    let mut refuse = |place: &dyn ToTokens, what: &str| {
        errors.push(Error::new_spanned(place, format!("{attribute} {what}")));
    };
    if sig.asyncness.is_none() {
        refuse(&sig.fn_token, "needs an `async fn`");
    }
    if !matches!(sig.safety, Safety::Default) {
        refuse(
            &sig.safety,
            "needs a safe function: nobody could keep the caller's promises",
        );
    }
    if !sig.generics.params.is_empty() {
        refuse(
            &sig.generics,
            "cannot run a generic function: nobody would choose its parameters",
        );
    }
    if !sig.inputs.is_empty() {
        refuse(
            &sig.inputs,
            "cannot run a function with parameters: nobody would supply them",
        );
    }
    let second = function
        .attrs
        .iter()
        .find(|attr| attr.path().is_ident("test"));
    if let Some(second) = second.filter(|_| is_test) {
        refuse(second, "makes the function a test already");
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::{expand_main, expand_test};
    use proc_macro2::TokenStream;
    use quote::quote;

    /// Compares by text: token streams have no equality.
    #[track_caller]
    fn assert_same(got: &TokenStream, expected: &TokenStream) {
        assert_eq!(got.to_string(), expected.to_string());
    }

    /// The messages of the `compile_error!` calls in `expansion`, in order, and the number of
    /// items that are anything else.
    #[track_caller]
    fn complaints(expansion: TokenStream) -> (Vec<String>, usize) {
        let file: syn::File = match syn::parse2(expansion) {
            Ok(file) => file,
            Err(error) => panic!("the expansion is no list of items: {error}"),
        };
        let mut messages = Vec::new();
        let mut others = 0;
        for item in file.items {
            match item {
                syn::Item::Macro(call) if call.mac.path.segments.last().is_some() => {
                    match call.mac.parse_body::<syn::LitStr>() {
                        Ok(text) => messages.push(text.value()),
                        Err(error) => panic!("not a message: {error}"),
                    }
                }
                _ => others += 1,
            }
        }
        (messages, others)
    }

    #[test]
    fn main_wraps_the_written_function() {
        assert_same(
            &expand_main(
                quote!(),
                quote!(
                    async fn main() {
                        work().await;
                    }
                ),
            ),
            &quote! {
                fn main() {
                    async fn main() { work().await; }
                    ::coloop::run(main())
                }
            },
        );
    }

    #[test]
    fn visibility_return_type_and_attributes_stay() {
        assert_same(
            &expand_main(
                quote!(),
                quote! {
                    /// Starts here.
                    #[allow(unused_variables)]
                    pub(crate) async fn start() -> io::Result<()> {
                        #![allow(unused_mut)]
                        Ok(())
                    }
                },
            ),
            &quote! {
                /// Starts here.
                #[allow(unused_variables)]
                pub(crate) fn start() -> io::Result<()> {
                    async fn start() -> io::Result<()> {
                        #![allow(unused_mut)]
                        Ok(())
                    }
                    ::coloop::run(start())
                }
            },
        );
    }

    #[test]
    fn test_runs_on_the_systems_clock() {
        assert_same(
            &expand_test(
                quote!(),
                quote! {
                    #[should_panic(expected = "boom")]
                    async fn it_booms() { panic!("boom") }
                },
            ),
            &quote! {
                #[::core::prelude::v1::test]
                #[should_panic(expected = "boom")]
                fn it_booms() {
                    async fn it_booms() { panic!("boom") }
                    ::coloop::testing::run(it_booms())
                }
            },
        );
    }

    #[test]
    fn test_runs_on_the_virtual_clock_when_asked() {
        let expected = quote! {
            #[::core::prelude::v1::test]
            fn waits() -> Result<(), Elapsed> {
                async fn waits() -> Result<(), Elapsed> { Ok(()) }
                ::coloop::testing::run_virtual(waits())
            }
        };
        for args in [quote!(virtual_clock), quote!(virtual_clock,)] {
            let item = quote!(
                async fn waits() -> Result<(), Elapsed> {
                    Ok(())
                }
            );
            assert_same(&expand_test(args, item), &expected);
        }
    }

    #[test]
    fn a_plain_fn_is_refused_and_main_stays_defined() {
        let (messages, others) = complaints(expand_main(
            quote!(),
            quote!(
                fn main() {}
            ),
        ));
        assert_eq!(messages, ["`#[coloop::main]` needs an `async fn`"]);
        assert_eq!(others, 1, "the stub that stands in for `main`");
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let item = quote! {
            #[test]
            unsafe fn broken<T>(count: u32) {}
        };
        let (messages, others) = complaints(expand_test(quote!(paused), item));
        assert_eq!(
            messages,
            [
                "`#[coloop::test]` needs an `async fn`",
                "`#[coloop::test]` needs a safe function: nobody could keep the caller's promises",
                "`#[coloop::test]` cannot run a generic function: nobody would choose its parameters",
                "`#[coloop::test]` cannot run a function with parameters: nobody would supply them",
                "`#[coloop::test]` makes the function a test already",
                "`#[coloop::test]` takes nothing or `virtual_clock`",
            ]
        );
        assert_eq!(others, 0);
    }

    #[test]
    fn unknown_arguments_are_refused() {
        let item = quote!(
            async fn main() {}
        );
        let (messages, _) = complaints(expand_main(quote!(flavor = "threads"), item.clone()));
        assert_eq!(messages.len(), 1);
        assert!(messages[0].starts_with("`#[coloop::main]` takes no arguments"));
        let unknown = [
            quote!(clock),
            quote!("virtual_clock"),
            quote!(virtual_clock = true),
            quote!(virtual_clock, virtual_clock),
            quote!(,),
        ];
        for args in unknown {
            let (messages, _) = complaints(expand_test(args.clone(), item.clone()));
            assert_eq!(
                messages,
                ["`#[coloop::test]` takes nothing or `virtual_clock`"],
                "for {args}"
            );
        }
    }

    #[test]
    fn what_is_no_function_is_refused() {
        for item in [
            quote!(
                struct Main;
            ),
            quote!(
                async fn main();
            ),
            quote!(),
        ] {
            let (messages, others) = complaints(expand_main(quote!(), item.clone()));
            assert_eq!((messages.len(), others), (1, 0), "for {item}");
        }
    }
}
