// Package image finds the VM image on the host and checks that its files are
// the ones that its manifest names.
//
// The daemon calls Find, Open and Verify before it boots a machine. The package
// must not know how an image is made or booted. Files are hashed only when one
// of them has changed since they were last found good: a start costs one stat
// per file.
package image
