// Package smoke asks a running instance the seven questions that decide whether
// a release may stay: health, a login, the catalog, a query, a sync, a pause,
// and health again without errors that were not there before.
package smoke
