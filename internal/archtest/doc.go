// Package archtest holds the guards on the shape of the tree, as tests with
// reasons: which package may import which, that every package says what it is,
// and that the files which the documentation names exist.
package archtest
