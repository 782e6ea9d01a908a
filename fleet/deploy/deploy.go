// Package deploy is the transaction that takes a host from one image to another
// and, if anything is wrong, back again with its data as it was.
package deploy
