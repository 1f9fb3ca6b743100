// Package snapshot keeps file trees in layers: what an image's layers unpack
// to, and the writable layers of containers.
//
// The contract is containerd's (core/snapshots), so that the builder can use
// the store through a thin adapter: names fix the life cycle. An active
// snapshot has a key, chosen by who prepares it, and is writable; Commit turns
// it into a committed one under a name, which can be the parent of others and
// never changes. A view is an active snapshot that nobody may write.
//
// Mounts come back as data: this package never calls mount(2).
//
// Overlay is the implementation on overlayfs with its metadata in bbolt:
//
//	snapshots/<n>/fs      the layer's own files, whiteouts in overlay's form
//	snapshots/<n>/work    overlayfs' work directory, of active snapshots
//	trash/<n>-<t>         removed, waiting for Cleanup
//
// The numbers are short and lower directories relative, so that the options of
// 128 layers fit into the one page that mount(2) reads.
//
// storetest.Plain is the second implementation (whole copies, no overlay), and
// storetest.Snapshots the suite that both pass.
package snapshot
