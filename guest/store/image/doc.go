// Package image keeps what is known of images: names, manifests, configs, and
// which blobs and layers belong to which image.
//
// An image is known by the digest of its config (its ID, as in docker). Names
// point to images; each remembers the index or manifest that it was pulled as,
// so that a push gives the same digests back. Records are in the metadata
// database, and the indexes beside them make every question cost what its
// answer is large, not what the store is large:
//
//	image/records/<id>            the record (JSON)
//	image/configs/<id>            the config, byte for byte
//	image/names/<reference>       image ID and target of a name
//	image/namesof/<id>\0<ref>     the names of an image
//	image/chains/<chain>\0<id>    the images that stand on a layer, topmost only
//	image/blobs/<digest>\0<id>    the images that need a blob
//	image/children/<parent>\0<id> images committed from an image
//
// The package parses manifests and chooses platforms, and it never touches
// blobs or snapshots itself: Delete returns what nobody needs any more, and
// the store facade removes it.
package image
