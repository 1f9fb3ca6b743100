// Package content keeps blobs by their digest: layers, configs, manifests and
// indexes, byte for byte as they came.
//
// Store is the contract; Local is the implementation on a file system,
// storetest.Memory the one in memory, and storetest.Content the suite that
// both pass. The layout of Local:
//
//	blobs/sha256/<hex>     a complete, verified blob, never written again
//	ingest/<name>/data     a blob that is being written
//	ingest/<name>/state    its reference and expectation (JSON)
//
// It is crash-only: a blob is written to its ingest, checked, synced and
// renamed into place, so what stands in blobs is whole. A writer that commits
// with Deferred leaves the syncing to its caller, who must call Sync before
// any metadata names the blob; what no metadata names is garbage, and garbage
// is removed at boot, before it can be mistaken for a blob.
//
// The package knows nothing of images, layers or leases. The store facade, the
// builder and the garbage collector use it.
package content
