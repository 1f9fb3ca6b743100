// Package event is the guest's event bus: what happened to containers, images
// and networks, as the messages of the Docker API.
//
// Publishers are the engine and the network manager; the one reader is the
// engine's Events use case. The bus keeps the last events, as dockerd does, so
// that a client can ask for what happened since a moment. It knows nothing of
// filters, HTTP or storage: events do not outlive the agent.
package event
