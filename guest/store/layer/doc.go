// Package layer turns the tar stream of an image layer into a directory in
// overlayfs' form, and knows nothing of images or where the stream comes from.
//
// # What happens to a layer
//
// Unpack takes a blob as it was pulled: it decompresses, hashes the tar stream
// (the hash is the layer's diff ID) and applies it, each in its own goroutine.
// Apply writes the entries into a directory that is not mounted, and does not
// need the layers below: whiteouts become character devices 0:0, opaque
// directories get their attribute. So all layers of an image unpack in
// parallel. Finish then settles, bottom layer first, what depends on the
// layers below:
//
//   - a directory that the tar implies but does not hold gets the owner, mode,
//     times and attributes of the one below it;
//   - a whiteout that hides nothing is removed, for a directory that exists in
//     one layer only would show it as a device;
//   - an opaque root becomes whiteouts, for overlayfs merges roots always.
//
// Two things cannot be settled afterwards: a hard link to a file of a layer
// below, and a path that runs through a symbolic link of a layer below. Both
// are rare. They make Apply or Finish fail with ErrNeedsParent, and the caller
// unpacks the layer anew with Options.Lower.
//
// # Semantics
//
// The result, mounted on the layers below, is what applying the tar entry by
// entry to the merged tree would give, by the rules of the OCI image
// specification: a whiteout applies to the layers below only, whatever its
// place among the entries; an entry replaces what is at its path, but a
// directory merges with a directory. Symbolic links in the parents of a path
// are followed inside the root, as a process in a chroot would.
//
// # Hostile layers
//
// No path string is ever handed to a system call: each component is opened by
// its parent's descriptor with O_NOFOLLOW, symbolic links are resolved here,
// and `..` stops at the root. An entry or hard link whose path leads out of
// the root by itself is an error. overlayfs' own attributes and device 0:0 are
// not accepted from a tar. Limits bound entries, bytes, path lengths and the
// memory that names and attributes take, which is charged as it grows; all
// of these are errors of class Invalid, never panics.
package layer
