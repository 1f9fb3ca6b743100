// Package client talks to dhowd: it asks for a machine's status, starts and
// stops it, and makes sure that dhowd runs.
//
// The CLI and the tray use it; host/daemon shares its JSON types (status.go),
// which are the contract of dhowd's own HTTP API on the layout's DaemonSocket:
//
//	GET  /v1/status                  → Status
//	POST /v1/start                   → a stream of Event
//	POST /v1/stop?force=0|1&timeout=<seconds> → a stream of Event
//	POST /v1/quit                    → a stream of Event; dhowd ends after the machine has
//
// A stream is newline-delimited JSON; its last event has Done or Error. The
// client going away ends its stream, not the start or stop.
package client
