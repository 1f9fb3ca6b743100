// Package store keeps images and the file systems of containers: the facade
// over content (blobs), snapshot (layers on overlayfs), layer (tar to
// snapshot), image (records), registry (client) and gc.
//
// The engine, the builder and the API see images by name or ID, and snapshots
// by key; only this package knows how the parts belong together:
//
//   - Pull and Load feed each layer's stream to the content store and to the
//     unpacker at once, many layers in parallel, and share the work with
//     whoever asks for the same layer meanwhile (jobs.go).
//   - One sync of the file system and then one transaction make an image
//     visible, with all its layers (publish.go). Before it, nothing of it can
//     be seen; after it, all of it is durable.
//   - Remove deletes the records, and what nothing else needs, in one
//     transaction; the bytes go afterwards, in the background (remove.go).
//   - Open removes what a crash left half done.
//
// On disk, below Options.Root: content/ and overlay/; the metadata is in the
// database that the agent shares among its parts.
package store
