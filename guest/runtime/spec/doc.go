// Package spec makes OCI runtime-specs as docker makes them: the default spec
// of a container, and Build, which applies an API request to it.
//
// It is pure: what depends on the machine (the CPUs, the devices of a
// privileged container, the ids of processes) comes in as data.
package spec
