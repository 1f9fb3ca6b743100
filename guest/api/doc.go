// Package api serves the Docker Engine HTTP API.
//
// It decodes requests, calls the engine through the small interfaces of
// backend.go, and encodes what comes back, shaped for the API version that the
// client asked for. Every route is a row of the table in routes.go; each noun
// has a file and a test. It knows nothing of how the engine does its work, and
// holds no state of its own: the agent makes one handler and serves it on
// every listener.
//
// A request's path: (1) api.go:ServeHTTP bounds, logs and recovers; (2)
// version.go takes the version off the path and refuses those that are too old
// or too new; (3) routes.go finds the row; (4) the row's handler answers, or
// returns an error, which (5) errors.go turns into a status and a sentence.
package api
