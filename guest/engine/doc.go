// Package engine holds the use cases of the container engine: create, start,
// exec, stop, logs, wait, list, remove, pull. It owns the container records and
// their state table, and joins store, runtime and network through the small
// interfaces it declares; it does not know how a request came in.
package engine
