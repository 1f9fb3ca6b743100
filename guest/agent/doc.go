// Package agent is the composition root of the guest: it makes the store, the
// runtime, the network and the engine, joins them with the Docker API and the
// control protocol, and keeps them until it is told to end.
//
// cmd/dhow-agent calls Run. The wiring can be read top to bottom in agent.go:
//
//  1. listen (vsock in a machine, a unix socket on plain Linux): whoever
//     connects from here on is served, if later;
//  2. open the database, the store, the runtime, the network, the engine; where
//     that fails, 3 answers all requests with the reason, and 4 is left out;
//  3. serve the API; in a machine, dial PortReady;
//  4. load the images that the machine's own image carries (preload.go).
//
// Nothing else in the guest imports implementations of more than one part.
package agent
