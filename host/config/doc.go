// Package config knows where dhow keeps its files and what a machine's settings
// are.
//
// A Layout names every path below dhow's home directory; Settings are read from
// the machine's config.json, filled with defaults and validated once, and are a
// plain value from then on. The daemon, the clients and the CLI use it. It must
// not know what a machine is made of: no hypervisor, no image, no network.
//
// A file holds only what the user set: defaults follow the host and the version
// of dhow.
package config
