"""Pictures before and after a policy, of any model, on one page: to look at before it is rolled out."""
