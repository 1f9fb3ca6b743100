// Package storetest holds what the tests of the store share: the conformance
// suites of content and snapshot, the second implementation of each contract,
// helpers that build tar layers and images, compare trees entry by entry, and
// mount snapshots in a mount namespace of their own.
//
// It is imported by tests only.
package storetest
