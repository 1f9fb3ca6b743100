// Package control is the contract between the host (dhowd) and the guest
// (dhow-init, dhow-agent): everything that the Docker API cannot carry.
//
// # Ports
//
// The guest listens on PortControl and PortDocker; the host listens on
// PortReady and PortEgress. Every connection, in either direction, starts with
// the preamble (see Prove and Admit): both ends show that they hold the key of
// this boot, so that a container that opens an AF_VSOCK socket gets nowhere,
// whichever end it plays. The key reaches the guest in Boot.
//
// # Order of calls
//
//  1. dhowd makes a Boot with a fresh key, appends it to the initramfs as the
//     file /boot.json (an own small cpio archive) and starts the machine.
//  2. dhow-init reads and deletes /boot.json, mounts, starts dhow-agent and
//     hands it the Boot on standard input.
//  3. The agent listens on PortControl and PortDocker, then dials PortReady.
//     The connection carries the preamble and nothing else; the agent keeps it
//     open as long as it lives, so its end is the agent's end. Nothing polls.
//  4. dhowd dials PortControl and calls VerbHello first. Versions that differ
//     end the boot with an error that names both.
//  5. Any verb may follow, one at a time on a connection; dhowd may open more
//     connections. A connection's end cancels the call in flight.
//  6. VerbShutdown is the last call: the agent stops what runs, answers, and
//     init powers the machine off.
//
// After an agent restart (init restarts it) steps 3 and 4 happen again.
//
// # Encoding
//
// A message is a 4-byte big-endian length and that many bytes of JSON, at most
// MaxMessage. Bulk bytes never go through messages: they get a connection of
// their own (PortDocker, PortEgress).
//
// The package imports nothing of ours, and runs on both sides.
package control
