// Package link is the host's end of the connection to the agent in one booted
// machine: it waits for the agent, proves and checks who is there and which
// protocol it speaks, calls its verbs, sets its clock, and notices its end.
//
// The daemon makes one Link per boot. The contract is proto/control; nothing
// here knows a hypervisor or what the verbs do.
//
// # Life
//
// Run accepts the agent's ready connections. For each it dials PortControl,
// says hello and sets the clock; from then until the ready connection ends the
// Link is connected. An agent that was restarted dials again and is taken in
// the same way; calls and dials in between wait for it. Two agents at once
// cannot be: a new ready connection replaces the one before.
//
// An agent of another protocol version is final: Run ends with an error that
// names both versions.
package link
