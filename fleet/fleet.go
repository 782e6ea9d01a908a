// Package fleet looks after many instances at once: which there are and what
// each should run, what they say of themselves, and how to take all of them to
// another version without taking them down.
//
// It begins with the inventory, a file in git that people write. Load reads it
// from a working tree and LoadGit from any commit of a repository; both say
// everything that is wrong with it at once, by line and column. A Selector picks
// instances by their labels, and Inventory.Assign divides them into the waves of
// a rollout.
//
// A Prober asks instances how they are. Facts.Status puts what they say beside what
// the inventory wants, with every difference, and NewPlan says what would mend it.
// Neither carries anything out.
//
// An instance is seen through its API alone, so that one of any version can be
// looked after; hosts are reached by the packages below fleet/deploy.
package fleet
