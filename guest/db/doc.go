// Package db opens the guest's metadata database (bbolt) and lets the packages
// that keep metadata in it share one transaction.
//
// One file holds the records of images, snapshots, containers, volumes and
// networks, so that one transaction, and so one pair of fsyncs, can make
// several of them visible together. Each package owns its own top-level bucket
// and its own schema version (see Migrate).
//
// A transaction travels in the context: Update starts one, or joins the one
// that the context carries. So the engine can write a container's record and
// let the store write the container's snapshot in the same transaction, while
// neither knows the other's buckets. OnCommit and OnRollback attach what must
// follow outside of the database (a directory to rename or to remove).
//
// It knows nothing of what is stored. It is used by guest/store and by
// guest/engine, guest/volume and guest/network.
package db
