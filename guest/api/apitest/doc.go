// Package apitest is an engine in memory, for tests of the API and of its
// clients: it keeps the contract of guest/api/backend.go honestly (states,
// errors, the order of attach, wait and start, streams that end when they
// should) with containers whose programs are Go functions. It stores nothing
// and runs no process.
package apitest
