// A browser does not send the session along when a link on another site leads here, but it does for what this page asks for. So who
// has signed in before goes on without noticing.

const response = await fetch("/sign-in", { redirect: "manual" });
// Whoever has a session is led away from the sign-in page.
if (response.type === "opaqueredirect") location.replace(document.querySelector("form")?.dataset.next ?? "/");
// There may be none any more: pages that are open elsewhere look again.
else new BroadcastChannel("milepost sign-in").postMessage(null);

export {};
