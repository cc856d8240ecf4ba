from diff_diffusion.cli import main

main()
