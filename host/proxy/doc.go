// Package proxy carries docker clients' connections to the agent's Docker API.
//
// It copies bytes and understands nothing of HTTP but one thing: when the
// machine cannot be reached, it answers in the way that makes docker clients
// print the reason. The daemon owns the listener and says how to reach the
// agent; that call boots the machine where it is off, and it is made when a
// connection's first byte arrives, not when it is opened: port scanners, health
// checks and idle connection pools boot nothing.
package proxy
