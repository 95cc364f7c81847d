"""The root of all exceptions of hpo, trainer and storage. This module imports nothing."""


class HpoError(Exception):
    """The root of every error that the library reports: `except hpo.HpoError` catches them all.

    These reach the user:

        ConfigError        the user's input is wrong: a file, a key or an option (ValueError)
            FolderInUse    another process trains in the run's folder
            FolderAway     nothing can be written to the run's folder
        LedgerError        the ledger cannot do what was asked
            Unreachable    the database's server does not answer now
            StudyExists    the name of a new study is taken
            StudyNotFound  there is no study of that name
            Gone           another program has deleted the study or the trial (KeyError)
            BudgetSpent    every trial of the budget has been created
            RolledBack     a transaction was not written
            LeaseLost      another controller has taken over this controller's trials
            LeaseHeld      another controller runs the study
        Unfinished         a study ended before it reached its goal (RuntimeError)
        StoreError         a run's folder or store cannot be reached, read or written (OSError)
        CheckpointError    a run has checkpoints, and none of them can be read
        SplitWithheld      a run asked for a split that its phase may not read (RuntimeError)

    These stay inside the service, which waits, tries again, or writes down a reason:

        GangFailure        the ranks of a trial cannot go on
        RayLost            Ray's daemon on this machine died or did not start (RuntimeError)
        DiskAway           a folder of trials cannot be written to
        SpaceExhausted     every point of a finite search space was proposed before
        Refused            the dashboard does not do what its page asks, and the page says why
        _Broken            the network failed during a download
    """
