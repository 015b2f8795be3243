"""Many runs that answer one question: ablations of components, ladders of sizes."""
